"""Where ranks meet: rank 0 opens a free port and publishes it in a file that all of them see.

No port is chosen beforehand, so none is taken by another job meanwhile; every start of a job has a file of its
own, so a restart never meets the ranks of the start before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from kapdist.errors import InputError, TransientError
from kapdist.run.files import text_in, to_json, write_atomic

VARIABLE = "KAPDIST_RENDEZVOUS"
LOOPBACKS = ("127.0.0.1", "::1")
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0


@contextlib.contextmanager
def meeting(rank: int, world_size: int, environ: Mapping[str, str], timeout: timedelta) -> Iterator[dist.Store]:
    """Give the store in which the ranks find one another.

    The file that KAPDIST_RENDEZVOUS names comes first, else MASTER_ADDR and MASTER_PORT, as torchrun sets them. A
    process alone meets nobody.

    Raises:
        InputError: none of them is set, or to no place where ranks could meet.
        TransientError: rank 0 was not there within the time limit.
    """
    if world_size == 1:
        yield dist.HashStore()
        return
    if environ.get(VARIABLE):
        path = Path(environ[VARIABLE])
        try:
            yield publish(path, world_size, timeout) if rank == 0 else look_up(path, world_size, timeout)
        finally:
            if rank == 0:
                path.unlink(missing_ok=True)
        return
    yield store_of_variables(rank, world_size, environ, timeout)


def store_of_variables(rank: int, world_size: int, environ: Mapping[str, str], timeout: timedelta) -> dist.Store:
    """Meet at MASTER_ADDR and MASTER_PORT; under torchrun its own store is there already."""
    address, port = master(environ, world_size)
    try:
        return next(dist.rendezvous("env://", rank, world_size, timeout=timeout))[0]
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            found = f"{port}, which another process on {socket.gethostname()} has"
            raise InputError("environment variable MASTER_PORT", "a free port", found) from error
        missing = f"not all of {world_size} ranks came to" if rank == 0 else f"rank {rank} found no rank 0 at"
        raise TransientError(f"{missing} {address} port {port} in {in_words(timeout)}") from error


def master(environ: Mapping[str, str], world_size: int) -> tuple[str, int]:
    """Return MASTER_ADDR and MASTER_PORT.

    Raises:
        InputError: one is missing or empty, or the port is no number from 1 to 65535.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name, "").strip():
            found = "an empty word" if name in environ else "nothing"
            raise InputError(f"environment variable {name}", f"where {world_size} ranks meet", found)
    port = environ["MASTER_PORT"].strip()
    if not (port.isdecimal() and port.isascii() and 1 <= int(port) <= 65535):
        raise InputError("environment variable MASTER_PORT", "a port from 1 to 65535", repr(port))
    return environ["MASTER_ADDR"], int(port)


def publish(path: Path, world_size: int, timeout: timedelta) -> dist.TCPStore:
    """Open the store on a free port of all of this host's addresses and write down where it is."""
    # The name is the one by which this process reaches its own store; the store listens on every address.
    store = dist.TCPStore(loopback(), 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
    try:
        write_atomic(path, to_json({"hosts": own_names(os.environ), "port": store.port}))
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(path, "a file that rank 0 can write its address to", found) from error
    return store


def look_up(path: Path, world_size: int, timeout: timedelta) -> dist.TCPStore:
    """Wait for the address of rank 0 and connect to it by the first of its names that answers."""
    deadline = time.monotonic() + timeout.total_seconds()
    while not (text := text_in(path)):  # rank 0 takes it away as soon as it has failed
        if time.monotonic() > deadline:
            raise TransientError(f"rank 0 left no address in {path} within {in_words(timeout)}")
        time.sleep(POLL_SECONDS)
    found = json.loads(text)
    names = [*found["hosts"], *(LOOPBACKS if socket.gethostname() in found["hosts"] else ())]
    host = next((name for name in names if answers(name, found["port"])), None)
    if host is None:
        raise TransientError(f"rank 0 does not answer on port {found['port']} of {', '.join(names)} ({path})")
    try:
        return dist.TCPStore(host, found["port"], world_size, is_master=False, timeout=timeout)
    except dist.DistError as error:
        raise TransientError(f"rank 0 left {host} before its store could be reached ({path})") from error


def loopback() -> str:
    """Return this host's own loopback address: hosts with IPv6 alone have no 127.0.0.1."""
    for address in LOOPBACKS:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
            return address
    raise TransientError(f"this host has no loopback address ({' or '.join(LOOPBACKS)}): its network is down")


def own_names(environ: Mapping[str, str]) -> list[str]:
    """Return names and addresses that others may know this host by, the likeliest first.

    Slurm's name of the node, the host's own name, the address that srun was started from (the first node's).
    """
    names = [environ.get("SLURMD_NODENAME"), socket.gethostname(), environ.get("SLURM_LAUNCH_NODE_IPADDR")]
    return [name for name in dict.fromkeys(names) if name]


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def in_words(timeout: timedelta) -> str:
    return f"{timeout.total_seconds():g} s (timeout_minutes)"
