"""The processes of a sandbox, found by what they hold rather than by what was written down, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from sandbox.settings import NODES, SandboxError, Settings

LIMIT_SECONDS = 20.0


def sandbox_processes(settings: Settings) -> set[int]:
    """Every daemon, step, batch script and job process of a sandbox; never this process or those it runs in.

    A step has its slurmd's log open and a batch script itself; a job's processes have the sandbox's SLURM_CONF
    and a SLURM_JOB_ID (a user's shell has no such id); the rest descends from these.
    """
    found = {
        pid
        for pid in all_processes()
        if holds(pid, settings.directory)
        or {f"SLURM_CONF={settings.slurm_conf}", "SLURM_JOB_ID"} <= environment_words(pid)
    }
    for index, _ in enumerate(settings.namespaces):
        found |= in_namespace(settings, index)
    return with_descendants(found - own_processes())


def node_processes(settings: Settings, node: str) -> set[int]:
    """Every process of one node: its slurmd, its steps and what they run."""
    ours = f"SLURM_CONF={settings.slurm_conf}"
    found = {
        pid
        for pid in all_processes()
        if holds(pid, settings.node_directory(node)) or {ours, f"SLURMD_NODENAME={node}"} <= environment_words(pid)
    }
    if settings.namespaces and node != NODES[0]:  # the first has the controller in it
        found |= in_namespace(settings, NODES.index(node))
    return with_descendants(found - own_processes())


def all_processes() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def holds(pid: int, directory: Path) -> bool:
    """Return whether a process has a file of a directory open."""
    try:
        links = [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # gone, or another user's
        return False
    return any(target(link).startswith(f"{directory}/") for link in links)


def target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def environment_words(pid: int) -> set[str]:
    """A process's environment as `NAME=value`, and as `NAME`."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return set()
    words = text.split("\0")
    return {*words, *(word.split("=")[0] for word in words)}


def in_namespace(settings: Settings, index: int) -> set[int]:
    """Every process in a sandbox's namespace."""
    try:
        wanted = os.stat(f"/run/netns/{settings.namespaces[index]}").st_ino
    except OSError:
        return set()
    return {pid for pid in all_processes() if target(f"/proc/{pid}/ns/net") == f"net:[{wanted}]"}


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def with_descendants(pids: set[int]) -> set[int]:
    """The processes and all below them, but for this one and those it runs in."""
    found, parents = set(pids), {pid: parent(pid) for pid in set(all_processes()) - own_processes()}
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    return found


def own_processes() -> set[int]:
    """This process and all above it."""
    found: set[int] = set()
    pid: int | None = os.getpid()
    while pid and pid not in found:
        found.add(pid)
        pid = parent(pid)
    return found


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def kill_all(settings: Settings, node: str | None = None) -> int:
    """Kill the processes of a sandbox or of one node until none is found; return how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        left = {
            pid for pid in (node_processes(settings, node) if node else sandbox_processes(settings)) if alive(pid)
        }
        if not left:
            return len(killed)
        for pid in left:
            kill(pid)
        killed |= left
        time.sleep(0.05)
    raise SandboxError(f"processes {sorted(left)} do not end")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_slurmd(settings: Settings, node: str) -> int:
    """Kill a node's slurmd alone: its steps go on, as when the daemon crashes."""
    pid = int((settings.node_directory(node) / "slurmd.pid").read_text())
    if not holds(pid, settings.node_directory(node)):
        return 0
    kill(pid)
    return 1
