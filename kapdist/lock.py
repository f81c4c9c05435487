"""A lock file that names its holder; works between the nodes of a shared file system."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kapdist.errors import InputError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file that names its holder; works between the nodes of a shared file system.

    A lock whose holder is gone (its process on this host ended, or it was an earlier start of the same Slurm
    job) is taken over. Raises InputError when somebody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    mine = path.with_name(f".{path.name}.{token[:8]}.tmp")
    mine.write_text(json.dumps(holder() | {"token": token}))
    try:
        acquire(path, mine)
    finally:
        mine.unlink(missing_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text()).get("token") == token:
                path.unlink()


def acquire(path: Path, mine: Path) -> None:
    """Link `mine` to `path`, which only one process can do; remove what a dead holder left."""
    for _ in range(10):
        try:
            return os.link(mine, path)
        except FileExistsError:
            drop_if_stale(path)
    raise InputError(path, "a free lock", "a lock that others keep taking")


def drop_if_stale(path: Path) -> None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        found = {}
    if found and alive(found):
        who = f"process {found['pid']} on {found['host']} since {found['since']}"
        job = f" (Slurm job {found['job']})" if found.get("job") else ""
        raise InputError(path, f"nobody else at work here (remove {path.name} if that process is gone)", who + job)
    # Renaming can be done by one process only, so two of them never drop each other's fresh lock.
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        grave.unlink()


def holder() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def alive(found: dict[str, Any]) -> bool:
    if found["job"] and found["job"] == os.environ.get("SLURM_JOB_ID"):
        return False  # a requeue: Slurm ended the earlier start before this one
    if found["host"] != socket.gethostname():
        return True  # cannot be seen from here
    return process_start(found["pid"]) == found["started"] is not None


def process_start(pid: int) -> str | None:
    """Start time of a process in the kernel's ticks, which tells a reused process id; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
