"""From decoded pixels to what the model sees: crop, resize, mirror, move, cut out. Jitted, and the same for every
decoder, so that the backends of the loader agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba import types as numba_types

from kapdist.data.load.augment import centre_window, flipped, hole, random_window, shift
from kapdist.data.load.resample import AREA
from kapdist.data.load.resize import area_resize

types: Any = numba_types  # numba's own annotations do not know that a type can be called

NO_CROP, CENTRE_CROP, RANDOM_CROP = 0, 1, 2
FULL = 8  # eighths of the full resolution, libjpeg's unit of scaled decoding


@dataclass(frozen=True)
class Recipe:
    """What is done to every image of a loader, in this order: while it is decoded (render), then by make_retouch.

    With another interpolation than AREA it is the centre crop by centre_resample and nothing else. num_operations
    and magnitude are RandAugment's; late_cutout stands for cutout where there is an operation, which would move the
    square.
    """

    crop: int = NO_CROP
    centre_ratio: float = 1.0
    interpolation: int = AREA
    reduced: bool = False
    flip: bool = False
    pad: int = 0
    cutout: int = 0
    num_operations: int = 0
    magnitude: int = 0
    late_cutout: int = 0
    erasing: float = 0.0


def array_type(dtype: Any, ndim: int, *, readonly: bool = False) -> Any:
    return types.Array(dtype, ndim, "C", readonly=readonly)


@njit(nogil=True)
def crop_window(
    crop: int, key: int, image: int, height: int, width: int, centre_ratio: float
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of an image's crop, in pixels of its full resolution."""
    if crop == NO_CROP:
        return 0, 0, height, width
    if crop == CENTRE_CROP:
        return centre_window(height, width, centre_ratio)
    return random_window(key, image, height, width)


@njit(nogil=True)
def eighths(height: int, width: int, side: int) -> int:
    """Return the scale, in eighths, at which a window may be decoded and still has `side` pixels each way.

    Halves, quarters and eighths alone: libjpeg-turbo has no vector code for the scales between, which take longer
    than decoding everything.
    """
    for scale in (1, 2, 4):
        if scale * height >= FULL * side and scale * width >= FULL * side:
            return scale
    return FULL


@njit(nogil=True)
def scaled(length: int, scale: int) -> int:
    """Return what libjpeg makes of a height or width at scale / 8."""
    return (length * scale + FULL - 1) // FULL


@njit(nogil=True)
def place(plain: np.ndarray, out: np.ndarray, down: int, right: int, mirror: bool) -> None:
    """Copy plain into out, both (side, side, 3), moved and then mirrored; black where nothing lands."""
    side = out.shape[0]
    # Columns of out that something lands on: the inner loop has no test, for it decides the speed.
    # Moved by more than a side nothing does, and a negative end of a slice would leave what was in out before.
    first, last = min(side, max(0, right)), max(0, min(side, side + right))
    if mirror:
        first, last = side - last, side - first
    for y in range(side):
        row = y - down
        if not 0 <= row < side:
            out[y] = 0
            continue
        out[y, :first] = 0
        out[y, last:] = 0
        if mirror:
            for x in range(first, last):
                for channel in range(3):
                    out[y, x, channel] = plain[row, side - 1 - x - right, channel]
        else:
            for x in range(first, last):
                for channel in range(3):
                    out[y, x, channel] = plain[row, x - right, channel]


@njit(nogil=True)
def render(
    source: np.ndarray,
    scale: int,
    window: tuple[int, int, int, int],
    key: int,
    image: int,
    pad: int,
    flip: bool,
    cutout: int,
    plain: np.ndarray,
    out: np.ndarray,
) -> None:
    """Bring a decoded image into out (side, side, 3).

    Args:
        source: (rows, columns * 3), decoded at scale / 8.
        window: (top, left, height, width), in pixels of the full resolution.
        plain: (side, side, 3), to be written over.
    """
    side = out.shape[0]
    top, left, height, width = window
    mirror = flip and flipped(key, image)
    whole = source.shape[0] == side and source.shape[1] == 3 * side and height == side and width == side
    down, right = shift(key, image, pad) if pad else (0, 0)
    if whole:
        place(source.reshape(side, side, 3), out, down, right, mirror)
    else:
        part = scale / FULL
        target = plain if pad else out
        area_resize(source, top * part, left * part, height * part, width * part, mirror and not pad, target)
        if pad:
            place(plain, out, down, right, mirror)
    if cutout > 0:
        y0, y1, x0, x1 = hole(key, image, side, cutout)
        out[y0:y1, x0:x1] = 0
