"""The device of a plan: on which kind it is made, how it computes, which GPU each process of a machine takes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from kapdist.config import AttackConfig
from kapdist.engine.numerics import tensor_float_32
from kapdist.environment import package_versions
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.run.paths import RunDir, as_ended

VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_kind(device: str) -> str:
    """Return "cpu", or the name of this machine's GPU.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("device=cuda", "a CUDA device", "none")
    return torch.cuda.get_device_name()


def refuse_auto_elsewhere(run: Path, config: AttackConfig) -> None:
    """Refuse to fix the CPU for the shards of other machines only because this one has no GPU.

    A run that was trained on a GPU is attacked on one unless the config says otherwise: a plan of a login node
    would be bound to CPUs for good.

    Raises:
        InputError: device=auto, no GPU here, and the run was trained on one.
    """
    if config.device == "auto" and not torch.cuda.is_available() and (trained_on := gpu_of(RunDir(run))):
        expected = "a GPU, like the one that the run was trained on (or device=cpu, which every shard then takes)"
        raise InputError("device=auto", expected, f"none on this machine; trained on {trained_on}")


def check_precision(config: AttackConfig) -> None:
    """Refuse a precision that the device would only imitate.

    Raises:
        InputError: tf32 on a CPU, or on a GPU from before them; bf16 where neither multiplies it.
    """
    place, on_cpu = f"precision={config.precision}", device_kind(config.device) == "cpu"
    if config.precision == "tf32" and on_cpu:
        raise InputError(place, "a GPU for tf32", "device cpu")
    if config.precision == "bf16" and on_cpu and not multiplies_bf16():
        raise InputError(place, "a CPU with AMX or AVX512-BF16 (or fp32, which is faster here)", "neither")
    if config.precision != "fp32" and not on_cpu and torch.cuda.get_device_capability() < AMPERE:
        expected = "a GPU of compute capability 8.0 or later (or fp32, which is faster here)"
        raise InputError(place, expected, ".".join(map(str, torch.cuda.get_device_capability())))


AMPERE = 8, 0


def multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gpu_of(run: RunDir) -> str:
    """Return the GPU that a run was trained on, "" if it was none or nothing tells."""
    try:
        device = json.loads(as_ended(run.environment).read_text()).get("device", "")
    except InputError:
        raise
    except (OSError, ValueError, AttributeError):
        device = ""
    if not device and run.config.exists():
        device = run.load_config().engine.device  # runs from before the device was written down
    return "" if device in ("cpu", "auto") else str(device)


@contextlib.contextmanager
def computing(plan: AttackPlan) -> Iterator[torch.device]:
    """Compute as the plan says, on its kind of device; afterwards as before.

    Raises:
        InputError: another package version or device than the plan's.
    """
    versions = package_versions(tuple(plan.packages))
    for name, planned in plan.packages.items():
        if versions.get(name) != planned:
            raise InputError("environment", f"{name} {planned} as planned", str(versions.get(name)))
    device = "cpu" if plan.device == "cpu" else "cuda"
    if device_kind(device) != plan.device:
        raise InputError("device", f"{plan.device} as planned", device_kind(device))
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    repeats = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(plan.threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with tensor_float_32(False):
            yield torch.device(device)
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = repeats


def own_gpu(planned: str, shard: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that give a local shard a GPU: those of the plan's kind, in turn."""
    if planned == "cpu" or not torch.cuda.is_available():
        return {}
    fitting = [i for i in range(torch.cuda.device_count()) if torch.cuda.get_device_name(i) == planned]
    if not fitting:
        return {}  # the shard says what it found instead
    named = [word.strip() for word in environ.get(VISIBLE, "").split(",") if word.strip()]
    index = fitting[shard % len(fitting)]
    return {VISIBLE: named[index] if named else str(index)}
