"""CPUs, memory and limits of this process, and what is known to go wrong on some CPUs."""

from __future__ import annotations

import math
import os
import re
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kapdist.doctor.finding import Finding, judged, note, ok
from kapdist.doctor.packages import find_torch, release
from kapdist.environment import cache_root, cgroup_cpus, memory_bytes, usable_cpus

GIB, MIB = 2**30, 2**20
LOW_MEMORY = 4 * GIB
FEW_FILES = 1024
SMALL_SHM = 256 * MIB  # Docker's own default is 64 MiB
THREAD_VARIABLES = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ONEDNN_", "DNNL_")
PINS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
}


class Hazard(NamedTuple):
    """Something measured to go wrong, and what kapdist does about it."""

    torch: tuple[int, int]
    """The release that it is of."""
    needs: str
    """A flag of the CPU; "" for any."""
    what: str
    guarded: str


HAZARDS = (
    Hazard(
        (2, 13),
        "avx512f",
        "oneDNN 3.12 writes out of bounds in the weight gradient of strided 1 x 1 convolutions",
        "kapdist's trainings never ask for it; programs of your own: ONEDNN_MAX_CPU_ISA=AVX2",
    ),
    Hazard(
        (2, 11),
        "",
        "wrong gradients of avg_pool2d in channels_last on an H100, zero ones of compiled in-place sums",
        "kapdist's averages use neither; programs of your own: another release",
    ),
)


def cpus() -> Iterator[Finding]:
    text = Path("/proc/cpuinfo").read_text()
    flags = flags_of(text)
    model = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    usable, mask, there = usable_cpus(), len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = min(cgroup_cpus(Path("/")), default=math.inf)
    known = [name for flag, name in EXTENSIONS.items() if flag in flags]
    limited = quota < usable
    yield judged(
        "CPUs",
        f"{usable} usable ({mask} in the mask, {there} there), {model[1] if model else 'of no name'}",
        (
            limited,
            "note",
            f"a cgroup grants {quota:g} CPUs' time only: set engine.threads and an attack's threads to that",
        ),
    )
    slow = "avx2" not in flags and "asimd" not in flags
    yield judged(
        "vectors",
        ", ".join(known) or "none known",
        (slow, "note", "no AVX2: convolutions take several times as long"),
    )
    yield from hazards(flags, torch_version())


def flags_of(cpuinfo: str) -> frozenset[str]:
    """Return the flags of the first CPU in /proc/cpuinfo, which ARM calls features."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def torch_version() -> str | None:
    found = find_torch()
    return found.version if found else None


def hazards(flags: frozenset[str], torch: str | None) -> Iterator[Finding]:
    """Yield the hazards of a version of torch on a CPU with these flags; one line where there is none."""
    own = [hazard for hazard in HAZARDS if hazard.torch == release(torch or "")]
    known = [hazard for hazard in own if not hazard.needs or hazard.needs in flags]
    for hazard in known:
        yield note("hazard", f"torch {torch}: {hazard.what}", hazard.guarded)
    if not known:
        yield ok("hazards", f"none known of torch {torch} on this CPU")


def memory() -> Iterator[Finding]:
    limit, free = memory_bytes(), available(Path("/proc/meminfo").read_text())
    left = min(limit, free)
    yield judged(
        "memory",
        f"{limit / GIB:.1f} GiB for this job, {left / GIB:.1f} GiB free",
        (left < LOW_MEMORY, "note", "a training of ImageNet needs more: ask Slurm for it (cluster's mem_gb)"),
    )
    shm = os.statvfs("/dev/shm")
    size = shm.f_blocks * shm.f_frsize
    remedy = "NCCL's ranks of one node meet there: docker run --shm-size=1g, or --ipc=host"
    yield judged("/dev/shm", f"{size / GIB:.2f} GiB", (size < SMALL_SHM, "note", remedy))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < FEW_FILES
    remedy = f"ulimit -n {hard if 0 < hard < FEW_FILES else FEW_FILES}, or more: ranks and workers keep files open"
    yield judged("open files", "no limit" if soft < 0 else f"{soft:,}", (few, "note", remedy))


def available(meminfo: str) -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def threads() -> Iterator[Finding]:
    """Judge the variables that OpenMP and its likes read."""
    yield threads_told(os.environ, usable_cpus())


def threads_told(environ: Mapping[str, str], usable: int) -> Finding:
    said = {name: value for name, value in sorted(environ.items()) if name.startswith(THREAD_VARIABLES)}
    many = said.get("OMP_NUM_THREADS", "")
    over = many.isdecimal() and int(many) > usable
    pinned = [name for name in PINS if said.get(name, "false").lower() not in ("false", "disabled", "none")]
    return judged(
        "threads",
        " ".join(f"{name}={value}" for name, value in said.items()) or "no variable says how many: kapdist does",
        (over, "note", f"OMP_NUM_THREADS is more than the {usable} usable CPUs: threads wait for one another"),
        (bool(pinned), "note", f"{', '.join(pinned)} binds threads: ranks of one node may share CPUs, unset it"),
    )


def hosts() -> Iterator[Finding]:
    """Look up this machine's own name, as gloo does to tell other hosts where it is."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127.0.0.1"
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    remedy = "ranks on several hosts cannot meet there: GLOO_SOCKET_IFNAME names the interface between them"
    found = f"{name} is {address}" + (f", GLOO_SOCKET_IFNAME={chosen}" if chosen else "")
    yield judged("network", found, (address.startswith("127.") and not chosen, "note", remedy))


def cache() -> Iterator[Finding]:
    """See whether compiled code can be kept."""
    root = cache_root()
    at = next((folder for folder in (root, *root.parents) if folder.exists()), None) if root else None
    kept = at is not None and os.access(at, os.W_OK)
    remedy = "every process compiles anew, half a minute each: set XDG_CACHE_HOME to a folder that can be written"
    yield judged("cache", str(root or "no home"), (not kept, "note", remedy))
