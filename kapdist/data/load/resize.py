"""Area resizing of a window, in jitted code: every pixel is the mean of the source under its footprint.

It is what OpenCV's INTER_AREA computes, and so FFCV's decoders, at a fraction of the cost: rows are added up first,
over contiguous memory, where OpenCV gathers columns first, and then columns, a pixel in one register. Windows have
fractional edges, because the edges of a crop in full-resolution pixels lie between the pixels of an image that was
decoded at a reduced scale.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kapdist.data.load.lanes import put_weighted_sum

# Unsigned, because numba tests signed indices for being negative, which costs the inner loop a third of its speed.
U0, U1, U2, U3 = (np.uintp(number) for number in range(4))
HALF = np.float32(0.5)


@njit(nogil=True)
def footprints(start: float, extent: float, limit: int, first: np.ndarray, weights: np.ndarray) -> int:
    """Say which cells lie under each of count equal parts of [start, start + extent), and by how much.

    Fills first (count,), the part's first cell, and weights (count, taps), which add up to one; cells are numbered
    from 0 to limit - 1. Returns the most cells under any part.
    """
    count = len(first)
    step, most = extent / count, 1
    for index in range(count):
        low = start + index * step
        high = min(low + step, float(limit))
        begin = min(int(low), limit - 1)
        end = min(max(math.ceil(high), begin + 1), limit)
        total = 0.0
        for cell in range(begin, end):
            overlap = max(min(high, cell + 1.0) - max(low, float(cell)), 0.0)
            weights[index, cell - begin] = overlap
            total += overlap
        if total > 0:
            weights[index, : end - begin] /= np.float32(total)
        else:
            weights[index, 0] = 1
        weights[index, end - begin :] = 0
        first[index] = begin
        most = max(most, end - begin)
    return most


@njit(nogil=True)
def area_resize(
    source: np.ndarray, top: float, left: float, height: float, width: float, mirror: bool, out: np.ndarray
) -> None:
    """Resize a window of source (rows, columns * 3) into out (side, side, 3) uint8, mirrored if so asked.

    The window is in pixels of source; smaller ones than out are enlarged, as INTER_AREA does it.
    """
    side = out.shape[0]
    columns = source.shape[1] // 3
    first_row, row_weights = np.empty(side, np.int64), np.empty((side, int(height / side) + 3), np.float32)
    first_column = np.empty(side, np.int64)
    column_weights = np.empty((side, int(width / side) + 3), np.float32)
    row_taps = footprints(top, height, source.shape[0], first_row, row_weights)
    column_taps = footprints(left, width, columns, first_column, column_weights)
    begin, last = first_column[0], first_column[side - 1]
    end = min(last + column_taps, columns)
    line = np.zeros(3 * (last + column_taps - begin) + 1, np.float32)  # one more: see put_weighted_sum
    first_column -= begin
    values = out.reshape(-1)
    for y in range(side):
        here = 3 * side * y
        add_rows(source, first_row[y], row_weights[y, :row_taps], 3 * begin, 3 * end, line)
        if column_taps == 2:  # a number that the compiler knows is added up in half the time
            add_columns(line, first_column, column_weights, 2, values, here, mirror)
        elif column_taps == 3:
            add_columns(line, first_column, column_weights, 3, values, here, mirror)
        else:
            add_columns(line, first_column, column_weights, column_taps, values, here, mirror)


@njit(nogil=True)
def add_rows(source: np.ndarray, first: int, weights: np.ndarray, begin: int, end: int, line: np.ndarray) -> None:
    """Set line to the weighted sum of source's rows from `first` on, between two columns."""
    weight, row = weights[0], source[first, begin:end]
    for x in range(len(row)):
        line[x] = weight * np.float32(row[x])
    for tap in range(1, len(weights)):
        weight = weights[tap]
        if weight == 0:
            break
        row = source[first + tap, begin:end]
        for x in range(len(row)):
            line[x] += weight * np.float32(row[x])


@njit(nogil=True, inline="always")
def add_columns(
    line: np.ndarray, first: np.ndarray, weights: np.ndarray, taps: int, out: np.ndarray, begin: int, mirror: bool
) -> None:
    """Set a row of out, which begins at `begin`, to the weighted sums of line's pixels, rounded.

    Args:
        first: (side,), each sum's first pixel in line.
        weights: (side, taps or more).
        out: (values,) uint8.
    """
    side, to = len(first), np.uintp(begin)
    for x in range(side - 1):
        this = np.uintp(side - 1 - x if mirror else x)
        put_weighted_sum(out, to, line, np.uintp(3 * first[this]), weights[this], taps)  # type: ignore[call-arg]
        to += U3
    last = 0 if mirror else side - 1
    for channel in range(3):  # by itself: nothing may be written behind it
        value = HALF
        for tap in range(taps):
            value += weights[last, tap] * line[3 * (first[last] + tap) + channel]
        out[begin + 3 * (side - 1) + channel] = np.uint8(np.int32(value))
