"""Filters that several kinds share: Gaussian, along a line, magnified, sampled between pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

NEAREST = cv2.BORDER_REPLICATE
REFLECT = cv2.BORDER_REFLECT  # d c b a | a b c d | d c b a


def gaussian(values: Floats, std: float, border: int = NEAREST, truncate: float = 4.0) -> Floats:
    """Filter (height, width) or (height, width, channels) with a Gaussian, cut at `truncate` times `std`."""
    radius = int(truncate * std + 0.5)
    if radius == 0:
        return values
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    kernel /= kernel.sum()
    return np.asarray(cv2.sepFilter2D(values, -1, kernel, kernel, borderType=border), values.dtype)


def motion(values: Floats, radius: int, std: float, angle: float) -> Floats:
    """Smear (height, width) or (height, width, channels) to one side along a line; outside, the edge goes on.

    Weights are half a Gaussian over 2 radius + 1 pixels, each at the pixel nearest to the line, which is how
    ImageMagick's MotionBlurImage, which made the published sets, does it.

    Args:
        angle: of the line, degrees, from the right downwards.
    """
    length = 2 * radius + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * std**2))
    weights /= weights.sum()
    height, width = values.shape[:2]
    padded = np.pad(values, [(length, length), (length, length), (0, 0)][: values.ndim], mode="edge")
    smeared = np.zeros(values.shape)
    for step, weight in enumerate(weights):
        row = length + math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        column = length + math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        smeared += weight * padded[row : row + height, column : column + width]
    return smeared


def magnified(values: Floats, factor: float) -> Floats:
    """Enlarge the middle of (height, width, channels) by a factor from 1 on, linearly, to the size it had."""
    for axis in (0, 1):
        values = magnified_along(values, factor, axis)
    return values


def magnified_along(values: Floats, factor: float, axis: int) -> Floats:
    """Enlarge along an axis: the first and the last pixel of the cut are the first and last of the enlarged one."""
    size = values.shape[axis]
    cut = math.ceil(size / factor)
    enlarged = round(cut * factor)
    start, skipped = (size - cut) // 2, (enlarged - size) // 2
    places = (skipped + np.arange(size)) * ((cut - 1) / max(enlarged - 1, 1))
    low = np.minimum(places.astype(int), cut - 1)
    share = np.expand_dims(places - low, tuple(other for other in range(values.ndim) if other != axis))
    first, second = (np.take(values, start + index, axis) for index in (low, np.minimum(low + 1, cut - 1)))
    return (first * (1 - share) + second * share).astype(values.dtype)


def sampled(values: Floats, rows: Floats, columns: Floats) -> Floats:
    """Read (height, width, channels) between its pixels, linearly; what is outside is mirrored at the edge.

    Args:
        rows, columns: (height, width), where each pixel of the result is read.
    """
    upper, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - upper)[..., None], (columns - left)[..., None]
    result = np.zeros((*rows.shape, values.shape[2]))
    for row, row_share in ((upper, 1 - down), (upper + 1, down)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            inside = mirrored(row, values.shape[0]), mirrored(column, values.shape[1])
            result += row_share * column_share * values[inside]
    return result


def mirrored(index: NDArray[np.integer], size: int) -> NDArray[np.integer]:
    """Bring indices into range(size): -1 is 0, size is size - 1."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)
