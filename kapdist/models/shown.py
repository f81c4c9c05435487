"""A few images shown to a network that others may have written, and what it has to make of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.errors import InputError


def shown_images(model: nn.Module, resolution: int) -> Tensor:
    """Return six images on the model's device, the last two black and white."""
    tensors = (value for value in model.state_dict().values() if isinstance(value, Tensor))
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    images = torch.rand(6, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    images[4], images[5] = 0, 1
    return images.to(device)


def check_images_kept(model: nn.Module, place: object, resolution: int) -> None:
    """Refuse a model that writes into its images: an attack would go on from others than it recorded."""
    images = shown_images(model, resolution)
    given = images.clone()
    with (
        contextlib.suppress(Exception),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
    ):  # raised again, and said
        model(given)
    if not torch.equal(given, images):
        found = "images changed in place (let it work on a copy: images.clone())"
        raise InputError(place, "a model that leaves its images as they are", found)


def check_logits(logits: Any, place: object, images: Tensor, num_classes: int) -> None:
    shape = (len(images), num_classes)
    if not isinstance(logits, Tensor):
        raise InputError(place, "a tensor of logits", f"a {type(logits).__name__}")
    if tuple(logits.shape) != shape:
        found = f"{tuple(logits.shape)} (num_classes= says how many there are)"
        raise InputError(place, f"logits (batch, classes) = {shape}", found)
    if logits.dtype == torch.bool or logits.is_complex():
        raise InputError(place, "logits that are real numbers", str(logits.dtype).removeprefix("torch."))
    if not logits.isfinite().all():
        names = [f"test image {number}" for number in range(len(images))]
        raise InputError(place, "finite logits", where_not_finite(logits, images, names))
    sums_to_one = (logits.sum(1) - 1).abs().max() < 1e-4
    if sums_to_one and logits.min() >= 0 and logits.max() <= 1:
        found = "probabilities (rows in [0, 1] that sum to 1): AutoAttack's losses would mean nothing"
        raise InputError(place, "logits", found)


def where_not_finite(logits: Tensor, images: Tensor, names: Sequence[str]) -> str:
    """Say which images, (B, 3, height, width), have logits, (B, classes), that are not finite; the first three."""
    rows = (~logits.isfinite().all(1)).nonzero().squeeze(1).tolist()
    first = ", ".join(names[row] + said_of_grey(images[row]) for row in rows[:3])
    return f"NaN or infinity on {len(rows)} of {len(images)} images: {first}{', ...' if len(rows) > 3 else ''}"


def said_of_grey(image: Tensor) -> str:
    """Say that every pixel is the same, which a model that divides by an image's deviation cannot stand."""
    if image.min() != image.max():
        return ""
    value = image.max().item()
    name = {0.0: "all black", 1.0: "all white"}.get(value, f"every value {value:g}")
    return f" ({name}: is it divided by its standard deviation, without an epsilon?)"
