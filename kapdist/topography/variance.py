"""How far noise moves the network: variance over draws relative to the variance over images.

The paper's argument for averages is a smaller variance. Of each layer the same draws are looked at before its
average and behind it, in the network as it was trained. Input noise is white, not clamped, as in training.
Activation noise is white and put on the output of every convolution, behind the average, whatever the network was
trained with; a layer's own is not counted as its movement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kapdist.records.topography import MovedLayer, NoiseLevel
from kapdist.rng import derive_seed
from kapdist.topography.layers import Layer
from kapdist.topography.responses import Moments, to_device, watched
from kapdist.topography.similarity import averaged_squares

INPUT_STDS = (0.05, 0.1, 0.2)
ACTIVATION_STDS = (0.1, 0.2, 0.4)

Kind = Literal["input", "activation"]


@dataclass(frozen=True)
class Noise:
    """One kind of noise at one standard deviation, drawn several times."""

    kind: Kind
    std: float
    draws: int
    seed: int

    def generator(self, draw: int, batch: int, device: torch.device) -> torch.Generator:
        identity = derive_seed(self.seed, "variance", self.kind, str(self.std), draw, batch)
        return torch.Generator(device).manual_seed(identity)


class Spread:
    """The summed variance over draws of values of one shape, about the first draw."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor) -> None:
        if self.first is None:
            self.first = values
            self.sum, self.squares = torch.zeros_like(values), torch.zeros_like(values)
        moved = values - self.first
        self.count += 1
        self.sum += moved
        self.squares += moved.square()

    @property
    def variances(self) -> Tensor:
        return (self.squares - self.sum.square() / self.count) / (self.count - 1)


@dataclass(frozen=True)
class Signal:
    """Variances over images and places, mean over units: logits, and layers before and behind the average."""

    logits: float
    before: dict[str, float]
    after: dict[str, float]


def signal_of(layers: Sequence[Layer], moments: dict[str, Moments], logits: Tensor) -> Signal:
    """Return what the images themselves move."""
    before, after = {}, {}
    for layer in layers:
        if layer.name in moments:
            covariance = moments[layer.name].covariance
            before[layer.name] = float(covariance.diagonal().mean())
            average = layer.average
            after[layer.name] = float(
                averaged_squares(covariance, average.columns, average.weights.double()).mean()
            )
    return Signal(float(centred(logits).var(0, correction=0).mean()), before, after)


def centred(logits: Tensor) -> Tensor:
    """Return logits less their mean over classes, which no prediction depends on, (images, classes) float64."""
    logits = logits.double()
    return logits - logits.mean(1, keepdim=True)


def moved_by(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[tuple[Tensor, Tensor]],
    clean: Tensor,
    signal: Signal,
    noise: Noise,
    seed: int,
    tick: Callable[[int], None],
) -> NoiseLevel:
    """Return how far one noise moves logits and layers.

    Args:
        clean: logits without noise, (images, classes).
        seed: of the places in an image that responses are taken at.
    """
    device = next(model.parameters()).device
    sums: dict[str, list[float]] = {}
    of_logits, turned, start = 0.0, 0, 0
    for number, (images, _) in enumerate(batches):
        spreads: dict[str, tuple[Spread, Spread]] = {}
        logits = Spread()
        predicted = clean[start : start + len(images)].argmax(1)
        start += len(images)
        for draw in range(noise.draws):
            found = drawn(model, layers, to_device(images, device), noise, draw, number, spreads, seed)
            logits.add(centred(found))
            turned += int((found.argmax(1) != predicted).sum())
            tick(len(images))
        of_logits += float(logits.variances.mean(1).sum())
        for name, both in spreads.items():
            total = sums.setdefault(name, [0.0, 0.0])
            for place, spread in enumerate(both):
                total[place] += len(images) * float(spread.variances.double().mean())
    averages = {layer.name: layer.is_average for layer in layers}
    return NoiseLevel(
        kind=noise.kind,
        std=noise.std,
        logits=ratio(of_logits / start, signal.logits),
        changed=turned / (start * noise.draws),
        layers=tuple(
            MovedLayer(
                name=name,
                before=ratio(before / start, signal.before[name]),
                after=ratio(after / start, signal.after[name]) if averages[name] else None,
            )
            for name, (before, after) in sums.items()
        ),
    )


def ratio(moved: float, signal: float) -> float:
    return moved / signal if signal > 0 else 0.0


def drawn(
    model: nn.Module,
    layers: Sequence[Layer],
    images: Tensor,
    noise: Noise,
    draw: int,
    batch: int,
    spreads: dict[str, tuple[Spread, Spread]],
    seed: int,
) -> Tensor:
    """Return the logits under one draw, and add the layers' responses to their spreads."""
    counts: dict[str, int] = {}

    def take(layer: Layer, values: Tensor) -> None:
        counts[layer.name] = counts.get(layer.name, 0) + 1
        if counts[layer.name] > 1:
            return  # of a layer that several calls share, the first
        both = spreads.setdefault(layer.name, (Spread(), Spread()))
        both[0].add(values)
        both[1].add(layer.averaged(values.T.contiguous()) if layer.is_average else values)

    random = noise.generator(draw, batch, images.device)
    with torch.inference_mode(), watched(layers, seed, take), disturbed(layers, noise, random):
        if noise.kind == "input":
            images = images + noise.std * standard(images, random)
        return model(images).float().cpu()


@contextlib.contextmanager
def disturbed(layers: Sequence[Layer], noise: Noise, random: torch.Generator) -> Iterator[None]:
    """Put activation noise on the output of every convolution, behind who watches it."""

    def hook(conv: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + noise.std * standard(output, random)

    handles = [layer.conv.register_forward_hook(hook) for layer in layers] if noise.kind == "activation" else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def standard(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, device=like.device, dtype=like.dtype)
