"""What kernels prefer, class or orientation, laid out on their sheet, and whether neighbours prefer alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kapdist.records.topography import ClassMap, KernelPictures, Neighbourhood, Orientations
from kapdist.topography.layers import Layer
from kapdist.topography.places import Pairs
from kapdist.topography.responses import Moments
from kapdist.topography.similarity import is_silent

ORIENTATIONS = 16
FREQUENCIES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)  # cycles per pixel


def class_map(layer: Layer, moments: Moments, pairs: Pairs, orders: Tensor) -> ClassMap:
    """Return the class that each kernel answers most, relative to its mean answer."""
    preferred = moments.preferences.argmax(0)
    preferred[is_silent(moments.covariance.diagonal())] = -1

    def alike(first: Tensor, second: Tensor) -> Tensor:
        return ((preferred[first] == preferred[second]) & (preferred[first] >= 0)).double()

    return ClassMap(
        layer=layer.name,
        grid=layer.grid,
        preferred=tuple(preferred.tolist()),
        alike=neighbourhood(alike, pairs, orders),
    )


def neighbourhood(alike: Callable[[Tensor, Tensor], Tensor], pairs: Pairs, orders: Tensor) -> Neighbourhood:
    """Return the mean of a likeness over neighbours, against the same with kernels permuted."""
    first, second = pairs.near[:, 0], pairs.rows[pairs.near[:, 1]]
    found = float(alike(first, second).mean())
    null = torch.cat([alike(some[:, first], some[:, second]).mean(1) for some in orders.split(256)]).numpy()
    low, high = np.quantile(null, [0.025, 0.975])
    extreme = int((null >= found - 1e-12).sum())
    return Neighbourhood(neighbours=found, low=low, high=high, p=(1 + extreme) / (1 + len(null)))


def grating_responses(weight: Tensor) -> Tensor:
    """Return how far drifting grey gratings move each kernel's response, (kernels, ORIENTATIONS).

    A kernel's response to a grating that drifts by is a sinusoid whose amplitude is the size of the kernel's
    Fourier transform there; of several frequencies the largest counts. Orientation 0 has vertical bars.

    Shapes: weight is (kernels, channels, height, width).
    """
    kernels = weight.detach().double().sum(1)
    height, width = kernels.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.double), torch.arange(width, dtype=torch.double), indexing="ij"
    )
    angles = math.pi * torch.arange(ORIENTATIONS, dtype=torch.double) / ORIENTATIONS
    amplitudes = []
    for frequency in FREQUENCIES:
        # Rows count downwards: bars turned counter-clockwise have their wave along (cos, -sin).
        phase = 2 * math.pi * frequency * (angles.cos()[:, None, None] * x - angles.sin()[:, None, None] * y)
        amplitudes.append(
            torch.einsum(
                "khw,ohw->ko", kernels.to(torch.cdouble), torch.polar(torch.ones(()).double(), phase)
            ).abs()
        )
    return torch.stack(amplitudes).amax(0)


def preferred_orientations(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Return degrees in [0, 180) and selectivity in [0, 1] of responses, (kernels, ORIENTATIONS).

    The direction and length of the mean response vector at twice the angle: selectivity is one less the circular
    variance (Ringach et al. 2002, Journal of Neuroscience 22:5639).
    """
    double = 2 * math.pi * torch.arange(ORIENTATIONS, dtype=torch.double) / ORIENTATIONS
    vector = (responses * torch.polar(torch.ones_like(double), double)).sum(1)
    selectivity = vector.abs() / responses.sum(1).clamp(min=torch.finfo(torch.double).tiny)
    return (vector.angle().rad2deg() / 2) % 180, selectivity.clamp(max=1)


def orientations(layer: Layer, weight: Tensor, pairs: Pairs, orders: Tensor) -> Orientations:
    """Return the orientation map of a layer that sees the image."""
    degrees, selectivity = preferred_orientations(grating_responses(weight))
    vector = torch.polar(selectivity, (2 * degrees).deg2rad())
    vector = vector / vector.abs().square().mean().sqrt().clamp(min=torch.finfo(torch.double).tiny)

    def alike(first: Tensor, second: Tensor) -> Tensor:
        return (vector[first] * vector[second].conj()).real

    return Orientations(
        layer=layer.name,
        grid=layer.grid,
        degrees=tuple(degrees.tolist()),
        selectivity=tuple(selectivity.tolist()),
        alike=neighbourhood(alike, pairs, orders),
    )


def kernel_pictures(layer: Layer) -> KernelPictures:
    """Return the kernels as pictures, and those that the average makes of them where it leaves as many."""
    weight = layer.conv.weight.detach().float().cpu()
    channels, height, width = weight.shape[1:]
    shows = layer.is_average and layer.pool_stride == 1
    return KernelPictures(
        layer=layer.name,
        grid=layer.grid,
        shape=(height, width, channels),
        stored=pixels(weight),
        averaged=pixels(layer.averaged(weight)) if shows else None,
    )


def pixels(weight: Tensor) -> tuple[tuple[int, ...], ...]:
    largest = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny)
    scaled = 128 + 127 * weight / largest[:, None, None, None]
    shown = scaled.round().long().permute(0, 2, 3, 1).flatten(1)
    return tuple(map(tuple, shown.tolist()))
