"""The backend without FFCV: simplejpeg in the same threads.

It reads the same betons, and shares the jitted crops and resizing with the other backend, so the two differ by
their builds of libjpeg-turbo alone. Threads, because a process that has threads and CUDA cannot be forked safely;
simplejpeg and the jitted code let go of the interpreter's lock.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable

import numpy as np
import torch

from kapdist.data.beton.checksum import checksums, compiled_checksum
from kapdist.data.beton.layout import JPEG, YCBCR, BetonInfo, DamagedImageError
from kapdist.data.load.jpeg import decode_jpeg
from kapdist.data.load.passes import Pass
from kapdist.data.load.pillow import compile_resampling, resample
from kapdist.data.load.pixels import FULL, Recipe, array_type, crop_window, eighths, render, scaled, types
from kapdist.data.load.resample import AREA
from kapdist.data.load.retouch import Retouch, make_retouch
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.storage import MappedFile, StoredFile, tables_of
from kapdist.data.load.stored import compiled_stored
from kapdist.data.load.task import Asked, Task
from kapdist.data.load.workers import Workers
from kapdist.errors import InputError
from kapdist.jit import compiled


def scale_of(key, image, height, width, crop, centre_ratio, side):  # type: ignore[no-untyped-def]
    """Return the eighths of the resolution that an image's crop needs."""
    window = crop_window(crop, key, image, height, width, centre_ratio)
    return eighths(window[2], window[3], side)


def finish(  # type: ignore[no-untyped-def]
    source, scale, key, image, height, width, crop, centre_ratio, pad, flip, cutout, plain, out
):
    """Crop and so on; see pixels.render."""
    window = crop_window(crop, key, image, height, width, centre_ratio)
    render(source, scale, window, key, image, pad, flip, cutout, plain, out)


NUMBER = types.int64
SCALE = NUMBER(NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, types.float64, NUMBER)
PIXELS = array_type(types.uint8, 3)
REST = (*[NUMBER] * 6, types.float64, NUMBER, types.boolean, NUMBER, PIXELS, PIXELS)


@functools.cache
def compiled_functions() -> tuple[Callable[..., int], Callable[..., None]]:
    """Return scale_of and finish in machine code, cached on disk."""
    return compiled(scale_of, SCALE), compiled(finish, types.void(array_type(types.uint8, 2, readonly=True), *REST))


class Images:
    """The images of a pass, decoded into memory that is given.

    Args:
        file: where they are, of all passes.
    """

    def __init__(
        self, info: BetonInfo, recipe: Recipe, key: int, side: int, retouch: Retouch, file: StoredFile
    ) -> None:
        self.info, self.recipe, self.key, self.side, self.retouch = info, recipe, key, side, retouch
        self.stored = MappedFile(file)

    def fill(self, images: np.ndarray, out: np.ndarray) -> None:
        """Decode images into out, uint8 (batch, side, side, 3)."""
        plain, recipe = np.empty(out.shape[1:], np.uint8), self.recipe
        modes = self.info.layout.modes[images]
        one_by_one = modes == JPEG if recipe.interpolation == AREA else np.ones(len(images), np.bool_)
        for position in np.flatnonzero(one_by_one).tolist():
            self.render(int(images[position]), plain, out[position])
        if not one_by_one.all():
            self.render_stored(images, plain, out)
        self.stored.note(images)
        self.retouch(images, out, self.key)

    def render_stored(self, images: np.ndarray, plain: np.ndarray, out: np.ndarray) -> None:
        """Do what is no JPEG, all in one call."""
        layout, recipe, data = self.info.layout, self.recipe, self.stored.data
        starts, tables = self.stored.starts(images), tables_of(layout, images)
        # Jitted code would read past the map, and the process would die of it.
        if (beyond := starts + tables[0] > len(data)).any():
            raise DamagedImageError(int(images[beyond.argmax()]))
        largest = layout.largest_bytes if (tables[3] == YCBCR).any() else 0
        scratch = np.empty((1, largest), np.uint8), plain
        sums, unverified = self.info.checksums[images], self.stored.unverified(images)
        options = recipe.crop, recipe.centre_ratio, recipe.pad, recipe.flip, recipe.cutout
        here = np.ascontiguousarray(images), out, data, starts, *tables, sums, unverified
        bad = compiled_stored()(*here, *scratch, self.key, *options)
        if bad >= 0:
            raise DamagedImageError(int(images[bad]))

    def render(self, image: int, plain: np.ndarray, out: np.ndarray) -> None:
        """Do a JPEG, or whatever Pillow resizes."""
        recipe, layout = self.recipe, self.info.layout
        height, width = int(layout.heights[image]), int(layout.widths[image])
        if recipe.interpolation != AREA:
            if not resample(self.intact(image), int(layout.modes[image]), (height, width), recipe, out):
                raise DamagedImageError(image)
            return
        choose, complete = compiled_functions()
        scale = FULL
        if recipe.reduced:
            scale = choose(self.key, image, height, width, recipe.crop, recipe.centre_ratio, self.side)
        rows, columns = scaled.py_func(height, scale), scaled.py_func(width, scale)
        source = decode_jpeg(self.intact(image), image, rows, columns)
        source.flags.writeable = False
        options = recipe.crop, recipe.centre_ratio, recipe.pad, recipe.flip, recipe.cutout
        complete(source, scale, self.key, image, height, width, *options, plain, out)

    def intact(self, image: int) -> np.ndarray:
        """Return the stored bytes of an image; raise DamagedImageError if they are not what was written."""
        data, layout = self.stored.data, self.info.layout
        start, size = int(layout.offsets[image]), int(layout.sizes[image])
        here = np.array([start]), np.array([size])
        if start + size > len(data):
            raise DamagedImageError(image)
        unverified = self.stored.unverified(np.array([image]))[0]
        if unverified and checksums(data, *here)[0] != self.info.checksums[image]:
            raise DamagedImageError(image)
        return data[start : start + size]


class TorchPass(Pass):
    """One pass: its thread hands the images of a batch to the backend's workers."""

    def __init__(self, backend: TorchBackend, asked: Iterable[Asked]) -> None:
        self.task, self.workers = backend.task, backend.workers
        self.retouch, self.file = backend.retouch, backend.file
        self.begin(asked, backend.rings, backend.task)

    def open(self, asked: Asked) -> None:
        task = self.task
        self.images = Images(task.info, task.recipe, asked.key, asked.side, self.retouch, self.file)

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        count, side, images = len(indices), self.images.side, self.images
        memory: np.ndarray = ring.memory[slot].numpy()
        out = memory[: count * side * side * 3].reshape(count, side, side, 3)
        self.workers.run(lambda worker, where: images.fill(indices[where], out[where]), count)
        return out


def make_ring(task: Task) -> Ring:
    num_slots = task.config.batches_ahead + 2
    size = task.max_batch_size * task.largest**2 * 3
    return Ring(torch.empty(num_slots, size, dtype=torch.uint8, pin_memory=task.device.type == "cuda"), num_slots)


class TorchBackend:
    """Decodes in threads of this process, with simplejpeg.

    Raises:
        InputError: simplejpeg is not there, or the process cache is asked for.
    """

    def __init__(self, task: Task) -> None:
        if (task.info.layout.modes == JPEG).any():
            need_simplejpeg()
        if task.cache == "process":
            raise InputError("data.cache", "page, or auto, with data.backend=torch", "process")
        self.task, self.workers = task, Workers(task.num_workers)
        self.rings = Rings(functools.partial(make_ring, task))
        weakref.finalize(self, self.workers.close)
        weakref.finalize(self, self.rings.close)
        self.retouch, self.file = make_retouch(task.recipe), StoredFile(task.info.layout)
        if task.recipe.interpolation == AREA:
            compiled_functions()
            compiled_stored()
        else:
            compile_resampling()
        compiled_checksum()

    def start(self, asked: Iterable[Asked]) -> TorchPass:
        return TorchPass(self, asked)


def need_simplejpeg() -> None:
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        raise InputError("data.backend=torch", "simplejpeg (pip install simplejpeg)", str(error)) from None
