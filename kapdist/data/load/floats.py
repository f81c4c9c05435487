"""Bytes to floats on a CPU in one pass, in one thread: a batch is more than caches hold, and torch passes twice."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from kapdist.data.load.pixels import array_type, types
from kapdist.jit import compiled

WHITE = np.float32(255)


def divide(pixels, out):  # type: ignore[no-untyped-def]
    """Fill out, float32 in [0, 1], from pixels, uint8, both (batch, side, side, 3)."""
    bytes_, floats = pixels.reshape(-1), out.reshape(-1)
    for index in range(len(floats)):
        floats[index] = np.float32(bytes_[index]) / WHITE


@functools.cache
def compiled_divide() -> Callable[[np.ndarray, np.ndarray], None]:
    """Return divide in machine code, cached on disk."""
    return compiled(divide, types.void(array_type(types.uint8, 4), array_type(types.float32, 4)))
