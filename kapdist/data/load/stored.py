"""Images that need no JPEG decoder, raw pixels and YCbCr planes: many in one jitted call, for either backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from kapdist.data.beton.checksum import xxh64
from kapdist.data.beton.layout import JPEG, RAW
from kapdist.data.load.pixels import FULL, array_type, crop_window, render, types
from kapdist.data.load.ycbcr import rgb_window
from kapdist.jit import compiled


@njit(nogil=True)
def render_stored(
    stored: np.ndarray,
    mode: int,
    window: tuple[int, int, int, int],
    key: int,
    image: int,
    height: int,
    width: int,
    pad: int,
    flip: bool,
    cutout: int,
    pixels: np.ndarray,
    plain: np.ndarray,
    out: np.ndarray,
) -> None:
    """Bring the stored bytes of an image into out (side, side, 3); see pixels.render.

    Args:
        mode: RAW or YCBCR.
        pixels: (1, bytes of the image's pixels or more), to be written over.
    """
    if mode == RAW:
        render(stored.reshape(height, 3 * width), FULL, window, key, image, pad, flip, cutout, plain, out)
        return
    source = pixels[0, : 3 * height * width].reshape(height, 3 * width)
    rgb_window(stored, height, width, window, source)  # no resizing looks beyond its window
    render(source, FULL, window, key, image, pad, flip, cutout, plain, out)


def stored_part(  # type: ignore[no-untyped-def]
    images,
    out,
    data,
    starts,
    sizes,
    heights,
    widths,
    modes,
    sums,
    unverified,
    pixels,
    plain,
    key,
    crop,
    centre_ratio,
    pad,
    flip,
    cutout,
):
    """Bring images into out (batch, side, side, 3), but for JPEGs; return the first bad position, -1 if none is.

    Every argument up to `unverified` but data has an entry per position; starts are places in data.
    """
    for position in range(len(images)):
        image, start, size = images[position], starts[position], sizes[position]
        if modes[position] == JPEG:
            continue
        if unverified[position] and xxh64(data, start, size) != sums[position]:
            return position
        height, width = heights[position], widths[position]
        window, stored = crop_window(crop, key, image, height, width, centre_ratio), data[start : start + size]
        shape, mode = (height, width), modes[position]
        options = pad, flip, cutout, pixels, plain, out[position]
        render_stored(stored, mode, window, key, image, *shape, *options)
    return -1


# No plain uint8[::1] among them: a stock FFCV loader in the same process marks numba's one and only type of that
# name as read-only, and what was compiled for it is not found again.
NUMBERS = array_type(types.int64, 1)
TABLES: tuple[Any, ...] = (
    NUMBERS,
    array_type(types.uint8, 4),
    array_type(types.uint8, 1, readonly=True),
    *[NUMBERS] * 5,
    array_type(types.uint64, 1),
    array_type(types.boolean, 1),
)
"""The types of the arguments up to `unverified`."""
SCRATCH = array_type(types.uint8, 2), array_type(types.uint8, 3)
OPTIONS = types.int64, types.int64, types.float64, types.int64, types.boolean, types.int64
"""The types from `key` to `cutout`."""


@functools.cache
def compiled_stored() -> Callable[..., int]:
    """Return stored_part in machine code, compiled at the first call in a process and cached on disk."""
    return compiled(stored_part, types.int64(*TABLES, *SCRATCH, *OPTIONS))
