"""The backend without FFCV: simplejpeg in the same threads.

It reads the same betons, and shares the jitted crops and resizing with the other backend, so the two differ by
their builds of libjpeg-turbo alone. Threads, because a process that has threads and CUDA cannot be forked safely;
simplejpeg and the jitted code let go of the interpreter's lock.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch

from kapdist.data.beton.checksum import compiled_checksum
from kapdist.data.beton.layout import DamagedImageError
from kapdist.data.load.passes import Pass
from kapdist.data.load.pillow import compile_resampling, resample
from kapdist.data.load.pixels import FULL, JPEG, array_type, crop_window, eighths, render, scaled, types
from kapdist.data.load.resample import AREA
from kapdist.data.load.retouch import Retouch, make_retouch
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.storage import MappedFile
from kapdist.data.load.task import Task
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
    """The images of a pass, decoded one by one into memory that is given."""

    def __init__(self, task: Task, key: int, side: int, retouch: Retouch) -> None:
        self.task, self.key, self.side, self.retouch = task, key, side, retouch
        self.stored = MappedFile(task.info.layout)

    def fill(self, images: np.ndarray, out: np.ndarray) -> None:
        """Decode images into out, uint8 (batch, side, side, 3)."""
        plain = np.empty(out.shape[1:], np.uint8)
        for image, target in zip(images.tolist(), out, strict=True):
            self.render(image, plain, target)
        self.retouch(images, out, self.key)

    def render(self, image: int, plain: np.ndarray, out: np.ndarray) -> None:
        recipe, layout = self.task.recipe, self.task.info.layout
        height, width = int(layout.heights[image]), int(layout.widths[image])
        if recipe.interpolation != AREA:
            if not resample(self.verified(image), layout.modes[image] == JPEG, (height, width), recipe, out):
                raise DamagedImageError(image)
            return
        choose, complete = compiled_functions()
        scale = FULL
        if recipe.reduced and layout.modes[image] == JPEG:
            scale = choose(self.key, image, height, width, recipe.crop, recipe.centre_ratio, self.side)
        source = self.decoded(image, height, width, scale)
        source.flags.writeable = False
        options = recipe.crop, recipe.centre_ratio, recipe.pad, recipe.flip, recipe.cutout
        complete(source, scale, self.key, image, height, width, *options, plain, out)

    def decoded(self, image: int, height: int, width: int, scale: int) -> np.ndarray:
        """Return an image at scale / 8, (rows, columns * 3) uint8.

        Raises:
            DamagedImageError: its bytes are not what was written, or no JPEG of its size.
        """
        stored = self.verified(image)
        if self.task.info.layout.modes[image] != JPEG:
            return stored.reshape(height, 3 * width)
        return decode_jpeg(stored, image, scaled.py_func(height, scale), scaled.py_func(width, scale))

    def verified(self, image: int) -> np.ndarray:
        """Return the stored bytes of an image; raise DamagedImageError if they are not what was written."""
        data, layout = self.stored.data, self.task.info.layout
        start, size = int(layout.offsets[image]), int(layout.sizes[image])
        if start + size > len(data) or self.checksum(start, size) != self.task.info.checksums[image]:
            raise DamagedImageError(image)
        return data[start : start + size]

    def checksum(self, start: int, size: int) -> np.uint64:
        found = np.empty(1, np.uint64)
        compiled_checksum()(self.stored.data, np.array([start]), np.array([size]), found)
        return found[0]


def decode_jpeg(stored: np.ndarray, image: int, rows: int, columns: int) -> np.ndarray:
    """Return (rows, columns * 3) uint8, decoded as libffcv does, at the scale that gives this size."""
    import simplejpeg

    try:
        decoded = simplejpeg.decode_jpeg(stored, fastdct=True, min_height=rows, min_width=columns)
    except ValueError as error:
        raise DamagedImageError(image) from error
    if decoded.shape != (rows, columns, 3):
        raise DamagedImageError(image)
    return decoded.reshape(rows, 3 * columns)


class TorchPass(Pass):
    """One pass: its thread hands the images of a batch to the backend's workers."""

    def __init__(
        self,
        task: Task,
        batches: Sequence[np.ndarray],
        key: int,
        side: int,
        *,
        retouch: Retouch,
        workers: Workers,
        rings: Rings,
    ) -> None:
        self.images, self.side, self.workers = Images(task, key, side, retouch), side, workers
        info = task.info
        sizes = {"num_images": info.num_images, "max_batch_size": task.max_batch_size}
        self.begin(batches, rings, **sizes, name=info.path.name)

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        count, side = len(indices), self.side
        memory: np.ndarray = ring.memory[slot].numpy()
        out = memory[: count * side * side * 3].reshape(count, side, side, 3)
        self.workers.run(lambda worker, where: self.images.fill(indices[where], out[where]), count)
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
        try:
            import simplejpeg  # noqa: F401
        except ImportError as error:
            raise InputError("data.backend=torch", "simplejpeg (pip install simplejpeg)", str(error)) from None
        if task.cache == "process":
            raise InputError("data.cache", "page, or auto, with data.backend=torch", "process")
        self.task, self.workers = task, Workers(task.num_workers)
        weakref.finalize(self, self.workers.close)
        self.rings = Rings(functools.partial(make_ring, task))
        self.retouch = make_retouch(task.recipe)
        if task.recipe.interpolation == AREA:
            compiled_functions()
        else:
            compile_resampling()
        compiled_checksum()

    def start(self, index_batches: Sequence[np.ndarray], key: int, side: int) -> TorchPass:
        return TorchPass(
            self.task, index_batches, key, side, retouch=self.retouch, workers=self.workers, rings=self.rings
        )
