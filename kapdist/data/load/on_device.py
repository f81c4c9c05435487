"""Crop, resize, mirror, move, cut out and erase on any device, by torch.

Byte for byte what the jitted code of pixels.py, resize.py and erase.py makes of the same draws: sums are taken in
its order and its precision, and no multiplication is fused with an addition.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kapdist.data.load.augment import FIRST, GOLDEN, SECOND
from kapdist.data.load.resize import HALF

CHUNK = 1 << 25  # numbers of a sum on its way: 128 MB


def place(pixels: Tensor, begins: Tensor, side: int, shifts: Tensor, mirror: Tensor) -> Tensor:
    """Return images (batch, side, side, 3) uint8, moved and then mirrored; black where nothing lands.

    Args:
        pixels: (any, 3) uint8, in which an image's side * side pixels begin at `begins` (batch,).
        shifts: (batch, 2), down and right; mirror: (batch,) bool.
    """
    line = torch.arange(side, device=pixels.device)
    rows = line - shifts[:, :1]
    columns = torch.where(mirror[:, None], side - 1 - line, line) - shifts[:, 1:]
    places = begins[:, None, None] + rows.clamp(0, side - 1)[:, :, None] * side
    out = pixels[places + columns.clamp(0, side - 1)[:, None, :]]
    lands = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return out.masked_fill_(~lands[..., None], 0)


def resize(
    pixels: Tensor,
    begins: Tensor,
    shapes: Tensor,
    windows: Tensor,
    mirror: Tensor,
    largest: tuple[int, int],
    side: int,
) -> Tensor:
    """Return windows of images as (batch, side, side, 3) uint8; see resize.area_resize.

    Args:
        pixels: (any, 3) uint8, in which an image's pixels begin at `begins` (batch,).
        shapes, windows: (batch, 2) and (batch, 4): height and width; top, left, height and width.
        largest: height and width of the largest windows.
    """
    many = max(1, CHUNK // (3 * side * max(side, largest[1] + 1)))
    some = []
    for start in range(0, len(begins), many):
        here = slice(start, start + many)
        part = resize_some(pixels, begins[here], shapes[here], windows[here], mirror[here], largest, side)
        some.append(part)
    return torch.cat(some) if some else pixels.new_empty(0, side, side, 3)


def resize_some(
    pixels: Tensor,
    begins: Tensor,
    shapes: Tensor,
    windows: Tensor,
    mirror: Tensor,
    largest: tuple[int, int],
    side: int,
) -> Tensor:
    first_row, row_weights = footprints(windows[:, 0], windows[:, 2], shapes[:, 0], side, largest[0])
    first_column, column_weights = footprints(windows[:, 1], windows[:, 3], shapes[:, 1], side, largest[1])
    first_column = torch.where(mirror[:, None], first_column.flip(1), first_column) - windows[:, 1:2]
    column_weights = torch.where(mirror[:, None, None], column_weights.flip(1), column_weights)
    # One column more than the window: the rounding of a footprint's end may reach it, with a weight of nearly none.
    reach = torch.arange(largest[1] + 1, device=pixels.device)
    columns = begins[:, None] + torch.minimum(windows[:, 1:2] + reach, shapes[:, 1:] - 1)
    lines = None
    for tap in range(row_weights.shape[2]):
        rows = torch.minimum(first_row + tap, shapes[:, :1] - 1) * shapes[:, 1:]
        part = pixels[rows[:, :, None] + columns[:, None, :]].float() * row_weights[:, :, tap, None, None]
        lines = part if lines is None else lines.add_(part)
    assert lines is not None
    sums = torch.full((len(begins), side, side, 3), float(HALF), device=pixels.device)
    for tap in range(column_weights.shape[2]):
        there = (first_column + tap).clamp(max=largest[1])[:, None, :, None]
        part = lines.gather(2, there.expand(-1, side, -1, 3)) * column_weights[:, None, :, tap, None]
        sums.add_(part)
    return sums.to(torch.uint8)


def footprints(starts: Tensor, extents: Tensor, limits: Tensor, side: int, largest: int) -> tuple[Tensor, Tensor]:
    """Return the first cell under each of side parts, (batch, side), and weights (batch, side, taps) float32.

    See resize.footprints; all is of whole images, so starts and extents are whole numbers.
    """
    start, extent, limit = (value.double()[:, None] for value in (starts, extents, limits))
    step = extent / torch.full_like(extent, side)  # a GPU would multiply by a number's reciprocal
    low = start + torch.arange(side, device=starts.device) * step
    high = torch.minimum(low + step, limit)
    begin = torch.minimum(low.long(), limits[:, None] - 1)
    end = torch.minimum(torch.maximum(high.ceil().long(), begin + 1), limits[:, None])
    total, weights = torch.zeros_like(low), []
    for tap in range(math.ceil(largest / side) + 1):
        cell = begin + tap
        overlap = (torch.minimum(high, cell + 1.0) - torch.maximum(low, cell.double())).clamp(min=0)
        overlap = overlap.where(cell < end, 0.0)
        total += overlap
        weights.append(overlap.float())
    first = torch.zeros(len(weights), device=starts.device)
    first[0] = 1
    together = torch.stack(weights, 2) / total.float()[:, :, None]
    return begin, together.where((total > 0)[:, :, None], first)


def inside(boxes: Tensor, side: int) -> Tensor:
    """Return which pixels lie in boxes, (batch, 4) of top, bottom, left and right: (batch, side, side, 1) bool."""
    line = torch.arange(side, device=boxes.device)
    rows = (line >= boxes[:, :1]) & (line < boxes[:, 1:2])
    columns = (line >= boxes[:, 2:3]) & (line < boxes[:, 3:])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def fill_with_noise(images: Tensor, boxes: Tensor, streams: Tensor) -> Tensor:
    """Return images (batch, side, side, 3) with noise in their boxes; see erase.fill_with_noise.

    Args:
        streams: (batch,) int64, the bits of augment.noise_stream.
    """
    line = torch.arange(images.shape[1], device=images.device)
    widths = boxes[:, 3:] - boxes[:, 2:3]
    turns = ((line - boxes[:, :1]) * widths)[:, :, None] + (line - boxes[:, 2:3])[:, None, :] + 1
    values = mix(streams[:, None, None] + turns * signed(GOLDEN))
    noise = torch.stack([(values >> 8 * channel) & 255 for channel in range(3)], 3).to(torch.uint8)
    return torch.where(inside(boxes, images.shape[1]), noise, images)


def mix(values: Tensor) -> Tensor:
    """Spread the bits of 64-bit numbers; see augment.mix."""
    values = (values ^ shifted(values, 30)) * signed(FIRST)
    values = (values ^ shifted(values, 27)) * signed(SECOND)
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Shift to the right as if the numbers had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def signed(number: np.uint64) -> int:
    return int(np.uint64(number).astype(np.int64))
