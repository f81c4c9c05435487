"""What is taken out of an image last: cut-out's square and random erasing's rectangle."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit

from kapdist.data.load.augment import GOLDEN, erased, hole, mix, noise_stream
from kapdist.data.load.pixels import array_type, types
from kapdist.jit import compiled


@njit(nogil=True)
def fill_with_noise(stream: np.uint64, part: np.ndarray) -> None:
    """Fill part (height, width, 3) with bytes that are uniform and independent, three from each 64 bits."""
    for row in range(part.shape[0]):
        for column in range(part.shape[1]):
            stream += GOLDEN
            value = mix(stream)
            for channel in range(3):
                part[row, column, channel] = np.uint8(value >> np.uint64(8 * channel))


def erase_part(images, out, key, cutout, erasing):  # type: ignore[no-untyped-def]
    """Cut the square out of each image in out (batch, side, side, 3), then fill the erased rectangle with noise."""
    side = out.shape[1]
    for position in range(len(images)):
        image = images[position]
        if cutout > 0:
            y0, y1, x0, x1 = hole(key, image, side, cutout)
            out[position, y0:y1, x0:x1] = 0
        y0, y1, x0, x1 = erased(key, image, side, erasing)
        fill_with_noise(noise_stream(key, image), out[position, y0:y1, x0:x1])


SIGNATURE = types.void(
    array_type(types.int64, 1), array_type(types.uint8, 4), types.int64, types.int64, types.float64
)


@functools.cache
def compiled_erase() -> Callable[..., None]:
    """Return erase_part in machine code, cached on disk."""
    return compiled(erase_part, SIGNATURE)
