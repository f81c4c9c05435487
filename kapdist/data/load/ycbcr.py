"""Planar YCbCr 4:2:0, jitted both ways: half the bytes of raw pixels, and nothing to decode but a sum per pixel.

The colours are JPEG's, full range (ITU-T T.871), in libjpeg's fixed point: first all of Y, then Cb, then Cr, the
last two the mean of two by two pixels, at the border of as many as there are. Whoever reads takes the nearest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit, types

from kapdist.data.beton.layout import planes_bytes
from kapdist.data.load.resize import U1, U2
from kapdist.jit import compiled

BITS, HALF, MIDDLE = np.int32(16), np.int32(1 << 15), np.int32(128)


@njit(nogil=True)
def byte(value: np.int16) -> np.uint8:
    return np.uint8(min(max(value, np.int16(0)), np.int16(255)))


@njit(nogil=True)
def rgb_window(
    stored: np.ndarray, height: int, width: int, window: tuple[int, int, int, int], out: np.ndarray
) -> None:
    """Fill a window, (top, left, height, width), of out (height, width * 3) from the stored bytes of an image."""
    top, left, rows, columns = window
    chroma_width = (width + 1) // 2
    chroma = chroma_width * ((height + 1) // 2)
    first, last = left // 2, (left + columns + 1) // 2
    pairs = 2 * chroma_width
    red, green, blue = np.empty(pairs, np.int16), np.empty(pairs, np.int16), np.empty(pairs, np.int16)
    for y in range(top, top + rows):
        if y == top or y % 2 == 0:
            begin = height * width + (y // 2) * chroma_width
            reds = stored[begin + chroma : begin + chroma + chroma_width]
            colours(stored[begin : begin + chroma_width], reds, first, last, red, green, blue)
        here = slice(left, left + columns)
        luma, line = stored[y * width :][here], out[y, 3 * left : 3 * (left + columns)]
        add(luma, red[here], green[here], blue[here], line)


@njit(nogil=True)
def colours(
    blues: np.ndarray, reds: np.ndarray, first: int, last: int, red: np.ndarray, green: np.ndarray, blue: np.ndarray
) -> None:
    """Say what a line's colours add to its greys, int16, twice for each pair of columns from first to last."""
    for pair in range(first, last):
        at, even, odd = np.uintp(pair), np.uintp(2 * pair), np.uintp(2 * pair + 1)
        b, r = np.int32(blues[at]) - MIDDLE, np.int32(reds[at]) - MIDDLE
        red[even] = red[odd] = (np.int32(91881) * r + HALF) >> BITS
        green[even] = green[odd] = (np.int32(-22554) * b - np.int32(46802) * r + HALF) >> BITS
        blue[even] = blue[odd] = (np.int32(116130) * b + HALF) >> BITS


@njit(nogil=True)
def add(luma: np.ndarray, red: np.ndarray, green: np.ndarray, blue: np.ndarray, line: np.ndarray) -> None:
    """Fill line (columns * 3); narrow types and no test: the compiler takes many columns at a time."""
    for column in range(len(luma)):
        at, to = np.uintp(column), np.uintp(3 * column)
        value = np.int16(luma[at])
        line[to] = byte(np.int16(value + red[at]))
        line[to + U1] = byte(np.int16(value + green[at]))
        line[to + U2] = byte(np.int16(value + blue[at]))


def from_rgb(image, out):  # type: ignore[no-untyped-def]
    """Fill out (stored bytes,) from an image (height, width, 3) uint8."""
    height, width = image.shape[:2]
    chroma_width = (width + 1) // 2
    blues = height * width
    reds = blues + chroma_width * ((height + 1) // 2)
    for y in range(height):
        for x in range(width):
            r, g, b = np.int64(image[y, x, 0]), np.int64(image[y, x, 1]), np.int64(image[y, x, 2])
            out[y * width + x] = np.uint8((19595 * r + 38470 * g + 7471 * b + (1 << 15)) >> 16)
    for y in range(0, height, 2):
        for x in range(0, width, 2):
            r, g, b, count = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
            for row in range(y, min(y + 2, height)):
                for column in range(x, min(x + 2, width)):
                    r += image[row, column, 0]
                    g += image[row, column, 1]
                    b += image[row, column, 2]
                    count += 1
            at, half = (y // 2) * chroma_width + x // 2, count << 15
            offset = (count << 23) + half
            out[blues + at] = byte(np.int16((-11059 * r - 21709 * g + 32768 * b + offset) // (count << 16)))
            out[reds + at] = byte(np.int16((32768 * r - 27439 * g - 5329 * b + offset) // (count << 16)))


def whole_to_rgb(stored, out):  # type: ignore[no-untyped-def]
    """Fill out (height, width * 3) from the stored bytes of an image."""
    height, width = out.shape[0], out.shape[1] // 3
    rgb_window(stored, height, width, (0, 0, height, width), out)


READ, WRITTEN = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 2, "C")


@functools.cache
def compiled_from_rgb() -> Callable[[np.ndarray, np.ndarray], None]:
    """Return from_rgb in machine code, cached on disk."""
    image = types.Array(types.uint8, 3, "C", readonly=True)
    return compiled(from_rgb, types.void(image, types.Array(types.uint8, 1, "C")))


@functools.cache
def compiled_to_rgb() -> Callable[[np.ndarray, np.ndarray], None]:
    """Return whole_to_rgb in machine code, cached on disk."""
    return compiled(whole_to_rgb, types.void(READ, WRITTEN))


def planes(image: np.ndarray) -> np.ndarray:
    """Return the stored bytes of an image, (height, width, 3) uint8."""
    out = np.empty(planes_bytes(*image.shape[:2]), np.uint8)
    image = np.ascontiguousarray(image)
    image.flags.writeable = False
    compiled_from_rgb()(image, out)
    return out


def rgb(stored: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels, (height, width * 3) uint8, of stored bytes, which are read-only."""
    out = np.empty((height, 3 * width), np.uint8)
    compiled_to_rgb()(stored, out)
    return out
