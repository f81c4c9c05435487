"""The operations of RandAugment on a batch, on any device, by torch: the bytes that operations.py makes.

While they are worked on, images of a batch lie in the order of their operations, so that those of one are a slice;
the host, which draws them, knows where it begins. Where pixels come from is asked of the jitted code, once for an
epoch. The rest is integers, and floats in its precision, with no multiplication fused with an addition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kapdist.data.load.augment import NUM_OPERATIONS
from kapdist.data.load.operations import (
    AUTOCONTRAST,
    BLUE,
    BRIGHTNESS,
    COLOR,
    CONTRAST,
    GREEN,
    POSTERIZE,
    RED,
    ROUND,
    SHARPNESS,
    SHEAR_X,
    SOLARIZE,
)
from kapdist.data.load.rand_augment import compiled_operate, level_of

FIRSTS = (SHEAR_X, *range(BRIGHTNESS, NUM_OPERATIONS))  # of each slice: all that move pixels are one
BOUNDS = 2 * np.array([*FIRSTS, NUM_OPERATIONS])
PLACES = np.array([1, 1 << 8, 1 << 16])  # three bytes that tell a pixel's place


def arrange(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how images go through their operations, whose codes (batch, turns) are 2 * number + negative.

    Returns:
        (batch, 2 * turns + 1) int64: for each turn the slots from which its order takes images, and the codes in
        this order; then the slots from which the images' own order does.
        (turns, len(BOUNDS)): where the slice of each of FIRSTS begins, and where the last one ends.
    """
    count, turns = codes.shape
    slots, columns, bounds = np.arange(count), [], np.empty((turns, len(BOUNDS)), np.int64)
    for turn in range(turns):
        order = np.argsort(codes[:, turn], kind="stable")
        columns += [slots[order], codes[order, turn]]
        bounds[turn] = np.searchsorted(columns[-1], BOUNDS)
        slots = np.argsort(order)
    return np.stack([*columns, slots], 1), bounds


class RandAugment:
    """The operations at a magnitude, on images of one size.

    Args:
        send: brings an array to the device.
    """

    def __init__(self, magnitude: int, side: int, send: Callable[[np.ndarray], Tensor]) -> None:
        level = level_of.py_func
        self.sources = send(sources(magnitude, side))
        factors = [level(COLOR, magnitude, negative, side) for negative in (False, True)]
        self.factors = send(np.array(factors, np.float32))
        self.kept_bits = 0xFF << (8 - int(level(POSTERIZE, magnitude, False, side))) & 0xFF
        self.threshold = math.ceil(level(SOLARIZE, magnitude, False, side))

    def __call__(self, images: Tensor, table: Tensor, bounds: np.ndarray) -> Tensor:
        """Return images (batch, side, side, 3) uint8 after all turns; table and bounds are those of arrange."""
        for turn, ends in enumerate(bounds.tolist()):
            images, codes = images[table[:, 2 * turn]], table[:, 2 * turn + 1]
            for first, (start, stop) in zip(FIRSTS, itertools.pairwise(ends), strict=True):
                if start < stop:
                    some = images[start:stop]
                    some.copy_(self.operate(first, some, codes[start:stop]))
        return images[table[:, -1]]

    def operate(self, number: int, images: Tensor, codes: Tensor) -> Tensor:
        if number == SHEAR_X:
            return moved(images, self.sources[codes])
        if number in BASES:
            return blend(BASES[number](images), images, self.factors[codes % 2])
        if number == POSTERIZE:
            return images & self.kept_bits
        if number == SOLARIZE:
            return torch.where(images < self.threshold, images, 255 - images)
        return stretch(images) if number == AUTOCONTRAST else equalize(images)


def sources(magnitude: int, side: int) -> np.ndarray:
    """Return (codes, side * side) int64: for each code of a move, the pixel that each comes from, -1 for none."""
    codes, tellers = np.arange(2 * BRIGHTNESS), np.arange(1, side**2 + 1)[:, None] // PLACES % 256
    images = np.tile(tellers.astype(np.uint8).reshape(side, side, 3), (len(codes), 1, 1, 1))
    compiled_operate()(codes, images, magnitude)
    return images.reshape(len(codes), -1, 3) @ PLACES - 1


def moved(images: Tensor, sources: Tensor) -> Tensor:
    """Return images whose pixels come from sources (batch, side * side); black where there is none."""
    there = sources[:, :, None].clamp(min=0).expand(-1, -1, 3)
    out = images.flatten(1, 2).gather(1, there).masked_fill_((sources < 0)[:, :, None], 0)
    return out.view(images.shape)


def blend(base: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Return base + factor (images - base), cut off to bytes; see operations.blend."""
    mixed = (images - base).float() * factors[:, None, None, None]
    return mixed.add_(base).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return (batch, side, side, 1) int32, the grey of every pixel."""
    red, green, blue = images.int().split(1, 3)
    return (RED * red + GREEN * green + BLUE * blue + ROUND) >> 16


def mean_grey(images: Tensor) -> Tensor:
    """Return (batch, 1, 1, 1) int64, the mean of an image's grey, rounded half up."""
    count = images.shape[1] * images.shape[2]
    return (2 * grey(images).sum((1, 2, 3), keepdim=True) + count) // (2 * count)


def smooth(images: Tensor) -> Tensor:
    """Return (batch, side, side, 3) int32, means of neighbourhoods; the border as it is. See operations.sharpen."""
    out = images.int()
    columns = out[:, :-2] + out[:, 1:-1] + out[:, 2:]
    total = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    out[:, 1:-1, 1:-1] = (total + 4 * out[:, 1:-1, 1:-1] + 6) // 13
    return out


BASES: dict[int, Callable[[Tensor], Tensor]] = {
    BRIGHTNESS: torch.zeros_like,
    COLOR: grey,
    CONTRAST: mean_grey,
    SHARPNESS: smooth,
}


def stretch(images: Tensor) -> Tensor:
    """Return images whose channels reach from 0 to 255; see operations.stretch."""
    low, high = (end((1, 2), keepdim=True).double() for end in (images.amin, images.amax))
    # A tensor: 255.0 by a tensor is multiplied by a reciprocal, which rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)
    mapped = (images * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, mapped, images)


def equalize(images: Tensor) -> Tensor:
    """Return images whose bytes are evenly spread in each channel; see operations.equalize."""
    values = images.flatten(1, 2).transpose(1, 2).long()
    counts = values.new_zeros(len(images), 3, 256).scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    darker = step // 2 + counts.cumsum(2) - counts
    table = (darker // step.clamp(min=1)).clamp_(max=255)
    found = torch.where(step > 0, table.gather(2, values), values)
    return found.to(torch.uint8).transpose(1, 2).reshape(images.shape)
