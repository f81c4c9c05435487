"""Pillow's bilinear and bicubic resizing, jitted, to the last bit: what published models are evaluated with.

Pillow widens its filters where it shrinks, resizes along one axis, rounds to bytes, and then along the other, with
fixed-point weights (src/libImaging/Resample.c). Around it lies what torchvision's and timm's evaluation do: Resize
of the shorter side, then CenterCrop; only the pixels of the crop are computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import njit, types

from kapdist.data.load.resize import U1, U2, U3
from kapdist.jit import compiled

AREA, BILINEAR, BICUBIC = 0, 1, 2
INTERPOLATIONS = {"area": AREA, "bilinear": BILINEAR, "bicubic": BICUBIC}

FIXED = 22  # bits behind the point: 32 but those of a byte, and two for weights that are negative or add up to more
HALF = np.int32(1 << (FIXED - 1))
ROUNDING = 1e-9  # of a side that is a quotient of floats: 53 / (53 / 40) is 40


@njit(nogil=True)
def resized_sides(height: int, width: int, side: int, centre_ratio: float) -> tuple[int, int]:
    """Return (height, width) of the whole image when its shorter side is side / centre_ratio, both rounded down."""
    shorter = math.floor(side / centre_ratio * (1 + ROUNDING))
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def centre_resample(source, filter, centre_ratio, out):  # type: ignore[no-untyped-def]
    """Resize source (rows, columns * 3) and put the centre of it into out (side, side, 3) uint8.

    Args:
        filter: BILINEAR or BICUBIC.
        centre_ratio: the share of the shorter side that is left.
    """
    side, rows, columns = out.shape[0], source.shape[0], source.shape[1] // 3
    height, width = resized_sides(rows, columns, side, centre_ratio)
    top, left = int(np.rint((height - side) / 2)), int(np.rint((width - side) / 2))
    first_row, row_weights = weights_of(rows, height, top, side, filter)
    first_column, column_weights = weights_of(columns, width, left, side, filter)
    lines = out.reshape(side, 3 * side)
    if columns_first(rows - height, columns - width):
        line = np.empty(3 * columns, np.uint8)
        sums = np.empty(3 * columns, np.int32)
        for y in range(side):
            along_columns(source, first_row[y], row_weights[y], sums, line)
            along_row(line, first_column, column_weights, lines[y])
        return
    begin = first_row[0]
    end = min(rows, first_row[side - 1] + row_weights.shape[1])
    narrow, sums = np.empty((end - begin, 3 * side), np.uint8), np.empty(3 * side, np.int32)
    for y in range(begin, end):
        along_row(source[y], first_column, column_weights, narrow[y - begin])
    for y in range(side):
        along_columns(narrow, first_row[y] - begin, row_weights[y], sums, lines[y])


@functools.cache
def compiled_resample() -> Callable[[np.ndarray, int, float, np.ndarray], None]:
    """Return centre_resample in machine code, cached on disk: apart from what whoever resizes by area compiles."""
    read, written = types.Array(types.uint8, 2, "C", readonly=True), types.Array(types.uint8, 3, "C")
    return compiled(centre_resample, types.void(read, types.int64, types.float64, written))


@njit(nogil=True)
def columns_first(fewer_rows: int, fewer_columns: int) -> bool:
    """Return in which order Pillow goes: from version 13 on not always rows first, for very tall images' sake."""
    return fewer_rows > max(0, 2 * fewer_columns)


@njit(nogil=True)
def weights_of(length: int, resized: int, start: int, count: int, filter: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (first (count,), weights (count, taps)) of the pixels from `start` on when `length` becomes `resized`.

    first is the first pixel that each is made of; weights are whole numbers that add up to about 2**FIXED.
    """
    scale = length / resized
    widened = max(scale, 1.0)
    support = filter * widened
    taps = 2 * math.ceil(support) + 1
    first, weights = np.empty(count, np.int64), np.zeros((count, taps), np.int32)
    shares = np.empty(taps)
    for index in range(count):
        centre = (start + index + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        num = min(int(centre + support + 0.5), length) - low
        total = 0.0
        for tap in range(num):
            shares[tap] = response(filter, (tap + low - centre + 0.5) * (1.0 / widened))
            total += shares[tap]
        for tap in range(num):
            weight = shares[tap] / total * (1 << FIXED)
            weights[index, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[index] = low
    return first, weights


@njit(nogil=True)
def response(filter: int, x: float) -> float:
    """Return the filter's weight at a distance of x pixels; the cubic is that of a = -0.5 (Keys 1981)."""
    x = abs(x)
    if filter == BILINEAR:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


@njit(nogil=True)
def along_row(row: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Set out (count * 3) to weighted sums of the pixels of a row (columns * 3), both bytes."""
    columns = len(row) // 3
    for x in range(len(first)):
        red = green = blue = HALF
        for tap in range(min(weights.shape[1], columns - first[x])):
            weight, at = weights[x, tap], U3 * np.uintp(first[x] + tap)
            red += weight * np.int32(row[at])
            green += weight * np.int32(row[at + U1])
            blue += weight * np.int32(row[at + U2])
        to = U3 * np.uintp(x)
        out[to], out[to + U1], out[to + U2] = byte(red), byte(green), byte(blue)


@njit(nogil=True)
def along_columns(rows: np.ndarray, first: int, weights: np.ndarray, sums: np.ndarray, out: np.ndarray) -> None:
    """Set out to the weighted sum of rows (rows, bytes) from `first` on; sums is to be written over."""
    sums[:] = HALF
    for tap in range(min(len(weights), len(rows) - first)):
        weight, row = weights[tap], rows[first + tap]
        for x in range(len(row)):
            sums[x] += weight * np.int32(row[x])
    for x in range(len(sums)):
        out[x] = byte(sums[x])


@njit(nogil=True)
def byte(value: np.int32) -> np.uint8:
    return np.uint8(min(max(value >> np.int32(FIXED), np.int32(0)), np.int32(255)))
