"""From stored bytes to the pixels that the model sees: an FFCV decoder whose draws depend on the image alone."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from numba import njit
from numba import types as numba_types
from numba.core.typing import signature

from kapdist.data.augment import centre_window, flipped, hole, random_window, shift
from kapdist.data.beton import Layout
from kapdist.data.checksum import xxh64
from kapdist.data.errors import DamagedImageError
from kapdist.data.guard import AllocationQuery, SimpleRGBImageDecoder, State, lib
from kapdist.data.jit import compiled
from kapdist.data.workers import Workers

types: Any = numba_types  # numba's own annotations do not know that a type can be called

JPEG, RAW = 0, 1
NO_CROP, CENTRE_CROP, RANDOM_CROP = 0, 1, 2

# By name instead of by address, as FFCV calls them, so that compiled code may be cached on disk.
for name in ("resize", "imdecode"):
    address = ctypes.cast(getattr(lib, name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"kapdist_ffcv_{name}", address)
resize = types.ExternalFunction("kapdist_ffcv_resize", signature(types.void, *[types.int64] * 11))
imdecode = types.ExternalFunction(
    "kapdist_ffcv_imdecode",
    signature(types.int32, types.int64, types.uint64, types.uint32, types.uint32, types.int64, *[types.uint32] * 8),
)


@dataclass(frozen=True)
class Recipe:
    """What is done to every image of a loader."""

    resolution: int
    crop: int = NO_CROP
    centre_ratio: float = 1.0
    pad: int = 0
    flip: bool = False
    cutout: int = 0


@njit(nogil=True)
def place(plain: np.ndarray, out: np.ndarray, down: int, right: int, mirror: bool) -> None:
    """Copy plain into out, both (side, side, 3), moved and then mirrored; black where nothing lands."""
    side = out.shape[0]
    # Columns of out that something lands on: the inner loop has no test, for it decides the speed.
    first, last = max(0, right), min(side, side + right)
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


def decode_part(  # type: ignore[no-untyped-def]
    indices,
    out,
    data,
    offsets,
    sizes,
    heights,
    widths,
    modes,
    sums,
    verified,
    pixels,
    plain,
    key,
    crop,
    centre_ratio,
    pad,
    flip,
    cutout,
):
    """Decode images into out (batch, resolution, resolution, 3); return the first bad position, -1 if none is."""
    side = out.shape[1]
    for position in range(len(indices)):
        image = indices[position]
        start, height, width = offsets[image], heights[image], widths[image]
        if not verified[image]:
            if xxh64(data, start, sizes[image]) != sums[image]:
                return position
            verified[image] = True
        source = data.ctypes.data + start
        if modes[image] == JPEG:
            status = imdecode(
                source, sizes[image], height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, 0, 0
            )
            if status != 0:
                return position
            source = pixels.ctypes.data
        if crop == NO_CROP:
            top, left, h, w = 0, 0, height, width
        elif crop == CENTRE_CROP:
            top, left, h, w = centre_window(height, width, centre_ratio)
        else:
            top, left, h, w = random_window(key, image, height, width)
        if pad == 0 and not flip:
            resize(0, source, height, width, top, top + h, left, left + w, out[position].ctypes.data, side, side)
        else:
            resize(0, source, height, width, top, top + h, left, left + w, plain.ctypes.data, side, side)
            down, right = shift(key, image, pad) if pad else (0, 0)
            place(plain, out[position], down, right, flip and flipped(key, image))
        if cutout > 0:
            y0, y1, x0, x1 = hole(key, image, side, cutout)
            out[position, y0:y1, x0:x1] = 0
    return -1


def array_type(dtype: Any, ndim: int, *, readonly: bool = False) -> types.Array:
    return types.Array(dtype, ndim, "C", readonly=readonly)


# No plain uint8[::1] among them: a stock FFCV loader in the same process marks numba's one and only type of that
# name as read-only, and what was compiled for it is not found again.
NUMBERS = array_type(types.int64, 1)
SIGNATURE = types.int64(
    NUMBERS,
    array_type(types.uint8, 4),
    array_type(types.uint8, 1, readonly=True),
    *[NUMBERS] * 5,
    array_type(types.uint64, 1),
    array_type(types.boolean, 1),
    array_type(types.uint8, 2),
    array_type(types.uint8, 3),
    types.int64,
    types.int64,
    types.float64,
    types.int64,
    types.boolean,
    types.int64,
)


@functools.cache
def compiled_decode() -> Callable[..., int]:
    """Return decode_part in machine code, compiled at the first call in a process and cached on disk."""
    return compiled(decode_part, SIGNATURE)


class Decoder(SimpleRGBImageDecoder):
    """FFCV's operation for the image field: decode, crop, resize, translate, flip and cut out in one pass.

    One function instead of one per step, because every jitted function costs each process its compilation.
    FFCV's `storage_state` brings the file's bytes and the epoch's key: a key kept in the operation would be
    shared by two epochs that are open at once.
    """

    def __init__(self, recipe: Recipe, layout: Layout, checksums: np.ndarray, workers: Workers) -> None:
        super().__init__()
        self.recipe, self.layout, self.workers = recipe, layout, workers
        self.end = int((layout.offsets + layout.sizes).max())
        self.checksums, self.verified = checksums, np.zeros(len(checksums), np.bool_)
        side = recipe.resolution
        self.scratch = [
            (np.empty((1, layout.largest_bytes), np.uint8), np.empty((side, side, 3), np.uint8))
            for _ in range(workers.num_workers)
        ]

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self.recipe.resolution, self.recipe.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., np.ndarray]:
        return self.decode

    def decode(self, batch_indices: np.ndarray, out: np.ndarray, metadata: Any, storage_state: Any) -> np.ndarray:
        """Fill out (batch, resolution, resolution, 3) uint8 with the images named by batch_indices."""
        data, key = storage_state
        if len(data) < self.end:  # jitted code would read past the map, and the process would die of it
            raise DamagedImageError(int((self.layout.offsets + self.layout.sizes).argmax()))
        layout, recipe = self.layout, self.recipe
        function = compiled_decode()

        def part(worker: int, where: slice) -> None:
            bad = function(
                batch_indices[where],
                out[where],
                data,
                layout.offsets,
                layout.sizes,
                layout.heights,
                layout.widths,
                layout.modes,
                self.checksums,
                self.verified,
                *self.scratch[worker],
                key,
                recipe.crop,
                recipe.centre_ratio,
                recipe.pad,
                recipe.flip,
                recipe.cutout,
            )
            if bad >= 0:
                raise DamagedImageError(int(batch_indices[where][bad]))

        self.workers.run(part, len(batch_indices))
        return out
