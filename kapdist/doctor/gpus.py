"""GPUs as NVIDIA's driver has them (NVML), which takes a moment where CUDA itself would take seconds."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kapdist.doctor.finding import Finding, judged, ok, wrong
from kapdist.doctor.packages import Torch, find_torch, release

NVML = "libnvidia-ml.so.1"
NAME_BYTES = 96
GIB = 2**30
BUSY = 0.5  # of a GPU's memory
UNTOLD = (3, 4)  # NOT_SUPPORTED where it is the machine's memory; NO_PERMISSION where a part of a GPU is lent


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    memory_bytes: int
    """0 where the driver does not tell."""
    used_bytes: int


class Driver(NamedTuple):
    """NVIDIA's driver and what it drives."""

    version: str
    cuda: str
    """The newest CUDA that it serves."""
    gpus: tuple[Gpu, ...]


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class NvmlError(RuntimeError):
    """The driver answers with an error."""


def gpus() -> Iterator[Finding]:
    """Ask the driver for its GPUs, and whether this torch can use them."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    try:
        driver = ask(ctypes.CDLL(NVML))
    except OSError:
        if devices:
            yield wrong("GPUs", f"{devices[0]} is there, {NVML} is not", "install the driver's libraries")
        else:
            yield ok("GPUs", "none here: trainings and attacks run on CPUs")
        return
    except NvmlError as error:
        yield wrong(
            "GPUs", f"the driver says {error}", "nvidia-smi tells more; often a reboot after an update mends it"
        )
        return
    yield from told(driver, find_torch(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def ask(nvml: Any) -> Driver:
    """Ask a loaded NVML.

    Raises:
        NvmlError: it answers with an error.
    """

    def call(name: str, *words: Any, may_answer: Sequence[int] = ()) -> None:
        code = getattr(nvml, name)(*words)
        if code and code not in may_answer:
            raise NvmlError(f"error {code} ({name})")

    call("nvmlInit_v2")
    text, number = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_int()
    call("nvmlSystemGetDriverVersion", text, NAME_BYTES)
    version = text.value.decode()
    call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(number))
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    call("nvmlDeviceGetCount_v2", ctypes.byref(number))
    found = []
    for index in range(number.value):
        handle, memory = ctypes.c_void_p(), Memory()
        call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        call("nvmlDeviceGetName", handle, text, NAME_BYTES)
        call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory), may_answer=UNTOLD)
        found.append(Gpu(text.value.decode(), memory.total, memory.used))
    return Driver(version, cuda, tuple(found))


def told(driver: Driver, torch: Torch | None, visible: str | None) -> Iterator[Finding]:
    """Judge what the driver said, for a build of torch and CUDA_VISIBLE_DEVICES."""
    kinds = [gpu.name + (f", {gpu.memory_bytes / GIB:.0f} GiB" if gpu.memory_bytes else "") for gpu in driver.gpus]
    found = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "none"
    busy = [number for number, gpu in enumerate(driver.gpus) if gpu.used_bytes > BUSY * gpu.memory_bytes]
    in_use = f"somebody has most of the memory of {', '.join(map(str, busy))} (nvidia-smi names the process)"
    for_cpus = torch is not None and torch.cuda is None and bool(driver.gpus)
    hidden = f"CUDA_VISIBLE_DEVICES={visible} hides all of them from what is started here"
    yield judged(
        "GPUs",
        found,
        (for_cpus, "wrong", f"torch is built for CPUs: install one for CUDA {driver.cuda} or below"),
        (bool(driver.gpus) and visible in ("", "-1", "NoDevFiles"), "note", hidden),
        (bool(busy), "note", in_use),
    )
    newer = torch is not None and torch.cuda is not None and release(torch.cuda)[0] > release(driver.cuda)[0]
    wanted = f"torch is built for CUDA {torch.cuda if torch else ''}: update the driver, or install an older build"
    yield judged("driver", f"{driver.version}, CUDA up to {driver.cuda}", (newer, "wrong", wanted))
