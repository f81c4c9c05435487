"""Floating point operations of a model, and how many a second devices are made for."""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kapdist import kap
from kapdist.config import EngineConfig
from kapdist.plan.training import Plan

log = logging.getLogger(__name__)

# Dense, in units of 10^12 a second: (fp16 and bf16, TF32, fp32), from the makers' data sheets. The first entry that
# a device's name begins with, word by word, counts, so longer ones stand first.
PEAKS: dict[str, tuple[float, float, float]] = {
    "NVIDIA H100 PCIe": (756, 378, 51),
    "NVIDIA H100 NVL": (835, 418, 60),
    "NVIDIA H100": (989, 494, 67),
    "NVIDIA H200 NVL": (835, 418, 60),
    "NVIDIA H200": (989, 494, 67),
    "NVIDIA GH200": (989, 494, 67),
    "NVIDIA B200": (2250, 1125, 75),
    "NVIDIA A100": (312, 156, 19.5),
    "NVIDIA A40": (149.7, 74.8, 37.4),
    "NVIDIA A30": (165, 82, 10.3),
    "NVIDIA A10": (125, 62.5, 31.2),
    "NVIDIA L40S": (362, 183, 91.6),
    "NVIDIA L40": (181, 90.5, 90.5),
    "NVIDIA L4": (121, 60, 30.3),
    "Tesla V100": (125, 15.7, 15.7),
    "Tesla T4": (65, 8.1, 8.1),
}


def peak_flops(device: torch.device, engine: EngineConfig) -> float | None:
    """Return the operations a second that a device is made for in this precision; None for one without an entry."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), engine)


def peak_of(name: str, engine: EngineConfig) -> float | None:
    found = next((peaks for known, peaks in PEAKS.items() if re.match(rf"{known}(?![\w])", name)), None)
    if found is None or " MIG " in name:  # a part of a device, whose share of it the name says in its own way
        return None
    half, tf32, fp32 = found
    return 1e12 * (half if engine.precision != "fp32" else tf32 if engine.tf32 else fp32)


def forward_flops(model: nn.Module, side: int) -> float:
    """Return the operations of one image's forward, 2 for each multiplication: convolutions and linear layers."""
    still = copy.deepcopy(model).eval().requires_grad_(False)
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, side, side, device=parameter.device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), kap.noise(still, "off"), counter:
        still(images)
    return float(counter.get_total_flops())


def known_flops(model: nn.Module, side: int) -> float | None:
    """Return the operations of one image's forward; None where none are found."""
    try:
        return forward_flops(model, side) or None
    except Exception as error:  # a network by other people; the number is worth no run
        log.warning("the operations of a step are not counted: %s", str(error).partition("\n")[0])
        return None


def flops_of_steps(model: nn.Module, plan: Plan) -> Callable[[int], float | None]:
    """Return what tells the operations that a step takes for each of its images, from the steps finished before it.

    A backward is two forwards, and one where the gradient is of the images alone.
    """
    known = functools.cache(functools.partial(known_flops, model))

    def flops_of(step: int) -> float | None:
        forward = known(plan.resolution(step))
        return None if forward is None else forward * plan.forwards_per_image(step)

    return flops_of
