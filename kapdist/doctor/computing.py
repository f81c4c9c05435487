"""torch, imported, and a convolution on every device, KAP's layers on GPUs: what takes longer than a look."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from kapdist.doctor.finding import Finding, judged, wrong
from kapdist.doctor.layers import layers
from kapdist.errors import first_line

SIDE, CHANNELS, KERNELS, VALUE, WEIGHT = 8, 3, 2, 2.0, 3.0


def computing() -> Iterator[Finding]:
    """Import torch and compute on the CPU and on each GPU that it sees."""
    began = time.monotonic()
    import torch

    one_dnn = re.search(r"MKL-DNN (v\S+)", torch.__config__.show())
    found = f"imported in {time.monotonic() - began:.1f} s, oneDNN {one_dnn[1] if one_dnn else 'none'}"
    yield judged("torch imports", found)
    for device in ("cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))):
        yield computes(device)
        if device != "cpu":
            yield layers(device)


def computes(device: str) -> Finding:
    """Compare a convolution and its gradients with what they are by hand; whole numbers, so to the last bit."""
    import torch

    began = time.monotonic()
    try:
        layout = torch.channels_last
        images = (
            torch.full((1, CHANNELS, SIDE, SIDE), VALUE, device=device).to(memory_format=layout).requires_grad_()
        )
        weight = torch.full((KERNELS, CHANNELS, 3, 3), WEIGHT, device=device, requires_grad=True)
        maps = torch.nn.functional.conv2d(images, weight)
        maps.sum().backward()
        assert images.grad is not None
        assert weight.grad is not None
        right = (maps == 9 * CHANNELS * VALUE * WEIGHT).all() and (weight.grad == (SIDE - 2) ** 2 * VALUE).all()
        inner = images.grad[:, :, 2:-2, 2:-2]
        same = bool(right and (inner == 9 * KERNELS * WEIGHT).all())
    except RuntimeError as error:
        return wrong(f"on {device}", first_line(error), "this torch cannot compute there: another build, or driver")
    found = f"a convolution and its gradients in {time.monotonic() - began:.1f} s"
    return judged(
        f"on {device}", found, (not same, "wrong", "its numbers are wrong: use nothing that this device says")
    )
