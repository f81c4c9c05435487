"""What a run ran on: git commit and diff, packages, host, Slurm. Written to environment.json."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from kapdist.cpus import cpus_of_one

PACKAGES = ("kapdist", "torch", "ffcv", "numpy", "deepspeed", "pyautoattack", "polars", "pydantic", "omegaconf")
SNAPSHOT = Path(__file__).resolve().parents[1] / "GIT.json"
VARIABLES = ("SLURM_", "NCCL_", "GLOO_", "OMP_", "MKL_", "CUDA_VISIBLE_DEVICES")


def environment() -> dict[str, Any]:
    """Return JSON values that describe this process's environment."""
    return {
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": usable_cpus(),
        "packages": package_versions(),
        "git": git_state(),
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)},
    }


def usable_cpus(processes: int = 1) -> int:
    """Return the CPUs that this process may use, divided among the processes of its kind here; at least 1.

    os.cpu_count() counts the whole machine, which is wrong under Slurm and in containers.
    """
    return cpus_of_one(len(os.sched_getaffinity(0)), os.environ, processes)


def memory_bytes() -> int:
    """Return the memory that this job may use on this node: the machine's, Slurm's or the cgroup's.

    The page cache counts against a cgroup's limit too.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if megabytes := os.environ.get("SLURM_MEM_PER_NODE", ""):
        limits += [int(megabytes) << 20] if megabytes.isdecimal() and int(megabytes) else []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package, None where it is absent."""
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, str] | None:
    """Return commit and diff of the checkout that kapdist runs from, None outside of one.

    A queued job runs from a snapshot of the code, which says itself what it was taken from.
    """
    if SNAPSHOT.exists():
        return json.loads(SNAPSHOT.read_text())
    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit.strip(), "diff": git("diff", "HEAD") or ""}


def git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
