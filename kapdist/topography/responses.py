"""Responses of all layers to images, reduced as they pass to sums and products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.rng import permutation
from kapdist.topography.layers import Layer

POSITIONS = 16  # places in an image that a response is taken at, drawn by seed for each layer

Take = Callable[[Layer, Tensor], None]


class Moments:
    """Mean, covariance and mean by class of a layer's responses, float64, about the first batch's mean.

    Args:
        num_classes: how many classes the images may have.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sum = torch.zeros(channels, dtype=torch.double)
        self.product = torch.zeros(channels, channels, dtype=torch.double)
        self.by_class = torch.zeros(num_classes, channels, dtype=torch.double)
        self.class_counts = torch.zeros(num_classes, dtype=torch.double)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Take in responses, (observations, channels), and the class of each, (observations,)."""
        if self.shift is None:
            self.shift = values.double().mean(0).to(values.dtype)
        values = values - self.shift
        labels = labels.to(values.device)
        self.count += len(values)
        self.sum += values.double().sum(0).cpu()
        self.product += (values.T @ values).double().cpu()
        sums = torch.zeros(self.by_class.shape, dtype=values.dtype, device=values.device)
        self.by_class += sums.index_add_(0, labels, values).double().cpu()
        self.class_counts += torch.bincount(labels, minlength=len(self.by_class)).double().cpu()

    @property
    def covariance(self) -> Tensor:
        mean = self.sum / self.count
        return self.product / self.count - mean[:, None] * mean

    @property
    def preferences(self) -> Tensor:
        """Mean response to each class less that to all images, (classes, channels); -inf of an absent class."""
        counts = self.class_counts[:, None]
        means = self.by_class / counts.clamp(min=1) - self.sum / self.count
        return means.masked_fill(counts == 0, -torch.inf)


def positions_of(height: int, width: int, seed: int, layer: str) -> Tensor:
    """Return the places, in a map of this size, that a layer's responses are taken at, ascending."""
    chosen = permutation(height * width, seed, "positions", layer)[:POSITIONS]
    return torch.from_numpy(chosen).sort().values


@contextlib.contextmanager
def watched(layers: Sequence[Layer], seed: int, take: Take) -> Iterator[None]:
    """Show `take` every call of every layer, with responses before the average, (batch * places, kernels)."""
    handles = [layer.conv.register_forward_hook(hook_of(layer, seed, take)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook_of(layer: Layer, seed: int, take: Take) -> Callable[[nn.Module, Any, Any], None]:
    def hook(conv: nn.Module, args: Any, output: Any) -> None:
        x = args[0]
        if x.dim() == 3:
            x, output = x[None], output[None]
        places = positions_of(output.shape[2], output.shape[3], seed, layer.name).to(output.device)
        take(layer, layer.before_average(x, output, places).float())

    return hook


def moments_of(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[tuple[Tensor, Tensor]],
    num_classes: int,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[dict[str, Moments], Tensor]:
    """Return the moments of each layer that is called, in the order of calls, and the logits, (images, classes).

    A layer that several calls share is taken to have all their responses.
    """
    found: dict[str, Moments] = {}
    logits, now = [], torch.empty(0, dtype=torch.long)

    def take(layer: Layer, values: Tensor) -> None:
        if layer.name not in found:
            found[layer.name] = Moments(values.shape[1], num_classes)
        found[layer.name].add(values, now.repeat_interleave(len(values) // len(now)))

    device = next(model.parameters()).device
    with torch.inference_mode(), watched(layers, seed, take):
        for images, labels in batches:
            now = labels
            logits.append(model(to_device(images, device)).float().cpu())
            tick(len(images))
    return found, torch.cat(logits)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).contiguous(memory_format=torch.channels_last)
