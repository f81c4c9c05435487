"""Ranks of several hosts cannot meet over a loopback address, and gloo would wait for them until its time limit.

Gloo tells the others the address of GLOO_SOCKET_IFNAME, else the one that the host's own name stands for. On many
systems that is 127.0.1.1, by /etc/hosts, and where the name stands for nothing it takes 127.0.0.1.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from kapdist.errors import InputError
from kapdist.run.files import to_json

KEY = "kapdist/host of rank 0"
VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK_DEVICE = "772"  # ARPHRD_LOOPBACK of the kernel's if_arp.h


class Host(NamedTuple):
    """A host, or a container with a network of its own, and the way in which others are to reach it."""

    network: str
    """Equal in all processes that share a network, loopback and all."""
    name: str
    loopback: str
    """The loopback address, or device, that gloo would give to the others; empty if it is another."""


def refuse_loopback(rank: int, store: dist.Store) -> None:
    """Compare this rank's host with that of rank 0.

    Raises:
        InputError: they are two, and one of them cannot be reached from the other.
    """
    mine = this_host(os.environ)
    if rank == 0:
        store.set(KEY, to_json(mine))
    else:
        check(mine, Host(*json.loads(store.get(KEY))))


def check(mine: Host, first: Host) -> None:
    for host in (mine, first):
        if mine.network != first.network and host.loopback:
            found = f"{host.loopback} on {host.name}, which no other host reaches"
            raise InputError(f"environment variable {VARIABLE}", "the network interface between the hosts", found)


def this_host(environ: Mapping[str, str]) -> Host:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    interface = environ.get(VARIABLE, "")
    loopback = loopback_device(interface) if interface else loopback_address(socket.gethostname())
    name = environ.get("SLURMD_NODENAME") or socket.gethostname()
    return Host(f"{boot} {os.readlink('/proc/self/ns/net')}", name, loopback)


def loopback_device(interface: str) -> str:
    kind = Path("/sys/class/net") / interface / "type"
    return interface if kind.exists() and kind.read_text().strip() == LOOPBACK_DEVICE else ""


def loopback_address(name: str) -> str:
    """Return the first address of a host's own name that belongs to this host, if that is a loopback."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return "127.0.0.1"
    for family, _, _, _, address in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.bind((address[0], 0))
        except OSError:
            continue
        return str(address[0]) if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback else ""
    return "127.0.0.1"
