"""From stored bytes to the pixels that the model sees: an FFCV decoder whose draws depend on the image alone."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from numba.core.typing import signature

from kapdist.data.beton.checksum import checksums, xxh64
from kapdist.data.beton.layout import JPEG, DamagedImageError, Layout
from kapdist.data.load.ffcv import AllocationQuery, SimpleRGBImageDecoder, State, lib
from kapdist.data.load.pillow import compile_resampling, resample
from kapdist.data.load.pixels import FULL, Recipe, crop_window, eighths, render, scaled, types
from kapdist.data.load.resample import AREA
from kapdist.data.load.retouch import make_retouch
from kapdist.data.load.storage import tables_of
from kapdist.data.load.stored import OPTIONS, SCRATCH, TABLES, render_stored
from kapdist.data.load.workers import Workers
from kapdist.jit import compiled

# By name instead of by address, as FFCV calls it, so that compiled code may be cached on disk.
llvmlite.binding.add_symbol("kapdist_ffcv_imdecode", ctypes.cast(lib.imdecode, ctypes.c_void_p).value)
imdecode = types.ExternalFunction(
    "kapdist_ffcv_imdecode",
    signature(types.int32, types.int64, types.uint64, types.uint32, types.uint32, types.int64, *[types.uint32] * 8),
)


def decode_part(  # type: ignore[no-untyped-def]
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
    reduced,
):
    """Decode images into out (batch, side, side, 3); return the first bad position, -1 if none is.

    Every argument up to `unverified` but data has an entry per position; starts are places in data.
    """
    side = out.shape[1]
    for position in range(len(images)):
        image, start, size = images[position], starts[position], sizes[position]
        height, width = heights[position], widths[position]
        if unverified[position] and xxh64(data, start, size) != sums[position]:
            return position
        window = crop_window(crop, key, image, height, width, centre_ratio)
        if modes[position] == JPEG:
            scale = eighths(window[2], window[3], side) if reduced else FULL
            address, to = data.ctypes.data + start, pixels.ctypes.data
            if imdecode(address, size, height, width, to, height, width, 0, 0, scale, FULL, 0, 0) != 0:
                return position
            rows, columns = scaled(height, scale), 3 * scaled(width, scale)
            source = pixels[0, : rows * columns].reshape(rows, columns)
            render(source, scale, window, key, image, pad, flip, cutout, plain, out[position])
        else:
            stored, shape, mode = data[start : start + size], (height, width), modes[position]
            options = pad, flip, cutout, pixels, plain, out[position]
            render_stored(stored, mode, window, key, image, *shape, *options)
    return -1


SIGNATURE = types.int64(*TABLES, *SCRATCH, *OPTIONS, types.boolean)


@functools.cache
def compiled_decode() -> Callable[..., int]:
    """Return decode_part in machine code, compiled at the first call in a process and cached on disk."""
    return compiled(decode_part, SIGNATURE)


def compile_for(recipe: Recipe) -> None:
    """Have ready what the threads of a loader will call."""
    if recipe.interpolation == AREA:
        compiled_decode()
    else:
        compile_resampling()


def resample_part(
    recipe: Recipe,
    images: np.ndarray,
    out: np.ndarray,
    data: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    modes: np.ndarray,
    sums: np.ndarray,
    unverified: np.ndarray,
) -> int:
    """Do decode_part's work where Pillow decodes and resizes."""
    for position in range(len(images)):
        here = slice(position, position + 1)
        if unverified[position] and checksums(data, starts[here], sizes[here]) != sums[here]:
            return position
        stored = data[starts[position] : starts[position] + sizes[position]]
        shape = int(heights[position]), int(widths[position])
        if not resample(stored, int(modes[position]), shape, recipe, out[position]):
            return position
    return -1


class Decoder(SimpleRGBImageDecoder):
    """FFCV's operation for the image field: decode, crop, resize, translate, flip and cut out in one pass.

    One function instead of one per step, because every jitted function costs each process its compilation.
    FFCV's `storage_state` brings the pass's bytes, key and resolution: kept in the operation they would
    be shared by two passes that are open at once.

    Args:
        largest: the largest resolution that will be asked for, pixels.
    """

    def __init__(
        self, recipe: Recipe, largest: int, layout: Layout, checksums: np.ndarray, workers: Workers
    ) -> None:
        super().__init__()
        self.recipe, self.largest, self.layout, self.workers = recipe, largest, layout, workers
        self.checksums = checksums
        self.retouch = make_retouch(recipe)
        self.scratch = [np.empty((1, layout.largest_bytes), np.uint8) for _ in range(workers.num_workers)]

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self.largest, self.largest, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., np.ndarray]:
        return self.decode

    def decode(self, batch_indices: np.ndarray, out: np.ndarray, metadata: Any, storage_state: Any) -> np.ndarray:
        """Return (batch, side, side, 3) uint8 with the images named by batch_indices, in out's memory."""
        storage, key, side = storage_state
        layout, images = self.layout, batch_indices
        count = len(images)
        out = out.reshape(-1)[: count * side * side * 3].reshape(count, side, side, 3)
        data, starts = storage.data, storage.starts(images)
        sizes, heights, widths, modes = tables_of(layout, images)
        # Jitted code would read past the map, and the process would die of it.
        if count and (beyond := starts + sizes > len(data)).any():
            raise DamagedImageError(int(images[beyond.argmax()]))
        tables = starts, sizes, heights, widths, modes, self.checksums[images], storage.unverified(images)

        def part(worker: int, where: slice) -> None:
            here = images[where], out[where], data, *(table[where] for table in tables), self.scratch[worker]
            bad = self.decode_some(here, key, side)
            if bad >= 0:
                raise DamagedImageError(int(images[where][bad]))
            self.retouch(images[where], out[where], key)

        self.workers.run(part, count)
        storage.note(images)
        return out

    def decode_some(self, here: tuple[Any, ...], key: int, side: int) -> int:
        """Decode what the first arguments of decode_part name; return the first bad position, -1 if none is."""
        recipe = self.recipe
        if recipe.interpolation != AREA:
            return resample_part(recipe, *here[:-1])
        options = recipe.crop, recipe.centre_ratio, recipe.pad, recipe.flip, recipe.cutout, recipe.reduced
        return compiled_decode()(*here, np.empty((side, side, 3), np.uint8), key, *options)


__all__ = ["Decoder", "Recipe", "compile_for", "compiled_decode"]
