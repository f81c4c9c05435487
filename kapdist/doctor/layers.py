"""Training steps of small networks with KAP and noise on a GPU beside the same steps on the CPU.

On GPUs the layers are kernels of kapdist's own (Triton), which no CPU runs: whoever has another GPU than those that
they were tried on sees here whether they are right there, before weeks of training are built on them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kapdist.doctor.finding import Finding, judged, wrong
from kapdist.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT = 5e-3
"""Of the largest number of each tensor: rounding is a tenth of it, one number in the place of another far more."""
CHANNELS, KERNELS, SIDE, IMAGES, CLASSES = 3, 16, 12, 6, 5
KINDS = {"average and noise": False, "norm, average and noise": True}
WITHOUT = "set KAPDIST_TRITON=0, which leaves kapdist's own GPU code out, and report this line, the GPU and triton"


def layers(device: str) -> Finding:
    """Compare what the layers compute there, and their gradients, with the CPU."""
    import torch

    began, distances = time.monotonic(), []
    try:
        with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True, benchmark=False):
            for norm_first in KINDS.values():
                pairs = zip(step("cpu", norm_first), step(device, norm_first), strict=True)
                distances += [distance(expected, found) for expected, found in pairs]
    except Exception as error:  # torch's, Triton's, and those of the compilers that it calls
        return wrong(f"KAP on {device}", first_line(error), WITHOUT)
    found = f"{' and '.join(KINDS)} in {time.monotonic() - began:.1f} s, {max(distances):.0e} from the CPU's"
    same = all(far <= LIMIT for far in distances)  # of what is no number, nothing is
    return judged(f"KAP on {device}", found, (not same, "wrong", WITHOUT))


def distance(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, in units of the largest number."""
    return float((found.cpu() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def step(device: str, norm_first: bool) -> list[Tensor]:
    """Return the logits of two training steps, the gradients of the second and the statistics behind it."""
    import torch

    from kapdist.kap import seed_noise

    torch.manual_seed(0)
    model = network(norm_first)
    images = torch.rand(IMAGES, CHANNELS, SIDE, SIDE)
    seed_noise(model, 1)
    layout = torch.channels_last
    model, images = model.to(device, memory_format=layout), images.to(device, memory_format=layout)  # type: ignore[call-overload]
    first, second = model(images), model(images)
    second.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [tensor.detach() for tensor in (first, second, *gradients, *statistics)]


def network(norm_first: bool) -> nn.Module:
    """Return two convolutions under KAP, on sheets of 4 x 4 and 4 x 8, with noise."""
    from torch import nn

    from kapdist.kap import kapify

    def block(channels: int, kernels: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, kernels, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(kernels), nn.ReLU()]

    blocks = *block(CHANNELS, KERNELS), *block(KERNELS, 2 * KERNELS)
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * KERNELS, CLASSES))
    return kapify(model, noise_std=0.3, norm_first=norm_first).train()
