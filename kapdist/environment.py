"""What a run ran on: git commit and diff, packages, host, Slurm. Written to environment.json."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kapdist.run.cpus import cpus_of_one

PACKAGES = (
    "kapdist",
    "torch",
    "ffcv",
    "numpy",
    "deepspeed",
    "pyautoattack",
    "polars",
    "pydantic",
    "omegaconf",
    "timm",
    "torchvision",
)
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


def user_name() -> str:
    """Return the user's name; the number where neither a variable nor the system has one, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cache_root() -> Path | None:
    """Return this user's folder for what may be made again; None for a user who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kapdist"
    except RuntimeError:
        return None


def memory_bytes() -> int:
    """Return the memory that this job may use on this node: the machine's, Slurm's or that of a cgroup around it.

    The page cache counts against a cgroup's limit too.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *slurm_memory(os.environ), *cgroup_memory(Path("/"))])


def slurm_memory(environ: Mapping[str, str]) -> list[int]:
    """Return what Slurm gives the job on this node, bytes: by node, by CPU or by GPU; none if it does not say."""
    each = (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    )
    limits = []
    for name, times in each:
        megabytes, count = environ.get(name, ""), environ.get(times, "") if times else "1"
        if megabytes.isdecimal() and count.isdecimal() and int(megabytes) * int(count):  # 0 is all of the node's
            limits.append((int(megabytes) * int(count)) << 20)
    return limits


def cgroup_memory(root: Path) -> list[int]:
    """Return the memory limits of this process's cgroup and of all around it, bytes; both versions of cgroups.

    Args:
        root: of the file system, "/".
    """
    limits = []
    for file in [*in_cgroups(root, "memory.max"), *in_cgroups(root, "memory.limit_in_bytes", "memory")]:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            limits.append(int(file.read_text()))
    return limits


def cgroup_cpus(root: Path) -> list[float]:
    """Return how many CPUs' time this process's cgroup and all around it are granted, where one has a limit."""
    limits = []
    for file in in_cgroups(root, "cpu.max"):
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            quota, period = file.read_text().split()
            limits.append(int(quota) / int(period))
    for file in in_cgroups(root, "cpu.cfs_quota_us", "cpu"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text()) / int(file.with_name("cpu.cfs_period_us").read_text()))
    return [limit for limit in limits if limit > 0]  # -1 is none


def in_cgroups(root: Path, name: str, controller: str = "") -> list[Path]:
    """Return where a file of this process's cgroup and of all around it may lie.

    Args:
        controller: of the first version of cgroups; none for the second.
    """
    mount = root / "sys/fs/cgroup" / controller
    files = [mount / name]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            inner = PurePosixPath(path.lstrip("/"))
            levels = [level for level in (inner, *inner.parents) if ".." not in level.parts]
            if controller in controllers.split(",") and (controller or number == "0"):
                files += [mount / level / name for level in levels]
    return [*dict.fromkeys(files)]


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package, None where it is absent."""
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pixel_libraries() -> dict[str, str]:
    """Return the versions of what makes the pixels of corrupted images, as these libraries say them themselves."""
    import cv2
    import PIL

    return {"opencv": cv2.__version__, "pillow": PIL.__version__}


def version_in_words() -> str:
    """Return the version, and of a checkout or a snapshot of one the commit, and whether anything was changed."""
    state = git_state()
    changed = " and changes" if state and state["diff"] else ""
    return f"kapdist {package_version('kapdist')}" + (f" (commit {state['commit'][:12]}{changed})" if state else "")


def git_state() -> dict[str, str] | None:
    """Return commit and diff of the checkout that kapdist runs from, None outside of one.

    An installed package may lie in somebody else's: git knows the folder then, and not the file.

    A queued job runs from a snapshot of the code, which says itself what it was taken from.
    """
    if SNAPSHOT.exists():
        return json.loads(SNAPSHOT.read_text())
    # Installed in an environment below a checkout of something else, it is not of that one.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", Path(__file__).name) else None
    return None if commit is None else {"commit": commit.strip(), "diff": git("diff", "HEAD") or ""}


def git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a difference has the bytes of files, whatever they are written in
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
