"""What a sandbox is: its directory, ports, addresses and sizes; chosen once by `up`, read by everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pwd
import random
import socket
from pathlib import Path

NODES = ("n1", "n2")
PORTS = range(20000, 32000)  # below Linux' ephemeral ports, so that no outgoing connection takes one
LONGEST_DIRECTORY = 80  # characters: a Unix socket's path ends at 107


class SandboxError(Exception):
    """Something about a sandbox that its user can understand; `code` is the exit code, `log` what to show."""

    def __init__(self, message: str, code: int = 1, log: Path | None = None) -> None:
        super().__init__(message)
        self.code, self.log = code, log


@dataclasses.dataclass(frozen=True)
class Settings:
    """One sandbox. `addresses` and `ports` are by name; `namespaces` is empty or has a name per node.

    The task plugin `affinity` binds tasks to CPUs, as most clusters do; `none` leaves them all that there are.
    """

    directory: Path
    cpus: int
    memory_mb: int
    accounting: bool
    task_plugin: str
    namespaces: tuple[str, ...]
    addresses: dict[str, str]
    ports: dict[str, int]

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def prefix(self) -> list[str]:
        """What comes before every command of a user: it enters the controller's namespace."""
        return enter(self.namespaces[0]) if self.namespaces else []

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.slurm_conf)}

    def node_directory(self, node: str) -> Path:
        return self.directory / node

    def save(self) -> None:
        fields = dataclasses.asdict(self) | {"directory": str(self.directory)}
        (self.directory / "sandbox.json").write_text(json.dumps(fields, indent=2) + "\n")


def enter(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace]


def load_settings(directory: Path) -> Settings | None:
    """Return the sandbox in a directory, or None where there is none."""
    try:
        fields = json.loads((directory / "sandbox.json").read_text())
    except FileNotFoundError:
        return None
    fields |= {"directory": directory, "namespaces": tuple(fields["namespaces"])}
    return Settings(**fields)


def default_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kapdist" / "slurm"


def choose_settings(directory: Path, cpus: int, accounting: bool, namespaces: bool, task_plugin: str) -> Settings:
    """Decide everything about a new sandbox; two in different directories share nothing."""
    tag = hashlib.sha256(str(directory).encode()).digest()
    names = tuple(f"kapdist-{tag.hex()[:8]}-{node}" for node in NODES) if namespaces else ()
    addresses = [f"10.{tag[0]}.{tag[1]}.{last}" if namespaces else "127.0.0.1" for last in (1, 2)]
    return Settings(
        directory=directory,
        cpus=cpus,
        memory_mb=memory_per_node_mb(),
        accounting=accounting,
        task_plugin=task_plugin,
        namespaces=names,
        addresses=dict(zip(NODES, addresses, strict=True)),
        ports=free_ports(["slurmctld", "slurmdbd", *NODES]),
    )


def user_name() -> str:
    """The user that everything runs as, whatever USER says."""
    return pwd.getpwuid(os.geteuid()).pw_name


def memory_per_node_mb() -> int:
    """A node's share of the machine's memory, a tenth of which is left to the machine itself."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(total * 0.9 / len(NODES)) // 2**20


def free_ports(names: list[str]) -> dict[str, int]:
    """Return a port for each name which nothing listens on."""
    found: dict[str, int] = {}
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == len(names):
            return found
        with socket.socket() as trial:
            try:
                trial.bind(("0.0.0.0", port))
            except OSError:
                continue
            found[names[len(found)]] = port
    raise SandboxError(f"no {len(names)} free ports in {PORTS.start}..{PORTS.stop - 1}")
