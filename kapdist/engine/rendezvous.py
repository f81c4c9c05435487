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

from kapdist.errors import InputError
from kapdist.rundir import to_json, write_atomic

VARIABLE = "KAPDIST_RENDEZVOUS"
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0


@contextlib.contextmanager
def meeting(rank: int, world_size: int, environ: Mapping[str, str], timeout: timedelta) -> Iterator[dist.Store]:
    """Give the store in which the ranks find one another.

    The file that KAPDIST_RENDEZVOUS names comes first, else MASTER_ADDR and MASTER_PORT, as torchrun sets them. A
    process alone meets nobody.

    Raises:
        InputError: none of them is set, or rank 0 did not publish its address within the time limit.
    """
    if world_size == 1:
        yield dist.HashStore()
        return
    if VARIABLE in environ:
        path = Path(environ[VARIABLE])
        try:
            yield publish(path, world_size, timeout) if rank == 0 else look_up(path, world_size, timeout)
        finally:
            if rank == 0:
                path.unlink(missing_ok=True)
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise InputError(f"environment variable {name}", f"where {world_size} ranks meet", "nothing")
    yield next(dist.rendezvous("env://", rank, world_size, timeout=timeout))[0]


def publish(path: Path, world_size: int, timeout: timedelta) -> dist.TCPStore:
    """Open the store on a free port of this host and write down where it is."""
    store = dist.TCPStore("0.0.0.0", 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
    write_atomic(path, to_json({"hosts": own_names(os.environ), "port": store.port}))
    return store


def look_up(path: Path, world_size: int, timeout: timedelta) -> dist.TCPStore:
    """Wait for the address of rank 0 and connect to it by the first of its names that answers."""
    deadline = time.monotonic() + timeout.total_seconds()
    while not path.exists():
        if time.monotonic() > deadline:
            raise InputError(path, "the address of rank 0", f"nothing in {timeout.total_seconds():g} s")
        time.sleep(POLL_SECONDS)
    found = json.loads(path.read_text())
    names = [*found["hosts"], *(["127.0.0.1"] if socket.gethostname() in found["hosts"] else [])]
    host = next((name for name in names if answers(name, found["port"])), None)
    if host is None:
        raise InputError(path, f"an answer of rank 0 on port {found['port']}", f"none from {', '.join(names)}")
    return dist.TCPStore(host, found["port"], world_size, is_master=False, timeout=timeout)


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
