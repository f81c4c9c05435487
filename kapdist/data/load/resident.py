"""A whole small data set on the loader's device: decoded once, then cropped and augmented there, to the same bytes.

On the CPU the decoded images take the file's place, and everything else is as ever. On a GPU the draws of some
batches, a few numbers for each image, are all that travels: whatever they decide is done there by on_device.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kapdist.data.beton.checksum import checksums
from kapdist.data.beton.layout import JPEG, RAW, YCBCR, BetonInfo, DamagedImageError, stored_bytes
from kapdist.data.load.augment import erased, flipped, hole, noise_stream, operation, shift
from kapdist.data.load.backend import chosen_backend, make_backend
from kapdist.data.load.ffcv import lib
from kapdist.data.load.jpeg import decode_jpeg
from kapdist.data.load.on_device import fill_with_noise, inside, place, resize
from kapdist.data.load.operations_on_device import RandAugment, arrange
from kapdist.data.load.passes import valid_batch
from kapdist.data.load.pixels import FULL, RANDOM_CROP, Recipe, array_type, crop_window, types
from kapdist.data.load.task import Asked, Task
from kapdist.data.load.workers import Workers
from kapdist.data.load.ycbcr import rgb
from kapdist.environment import memory_bytes
from kapdist.errors import InputError
from kapdist.jit import compiled

SHARE = 0.5  # of a device's free memory, or the machine's, that images may take
BATCHES = 32  # whose draws travel together
# The columns of a table of draws; RandAugment's come behind them.
WINDOW, MIRROR, SHIFT, HOLE, ERASED, STREAM = slice(0, 4), 4, slice(5, 7), slice(7, 11), slice(11, 15), 15
NUM_DRAWS = 16


def check_room(num_bytes: int, task: Task) -> None:
    """Refuse images that a device, or the node on which its ranks decode them, has no room for.

    Raises:
        InputError: they would take more than SHARE of what there is, or on the way to GPUs more than the node has.
    """
    gpu = task.device.type == "cuda"
    here = memory_bytes() // task.local_ranks
    limit = int(SHARE * (torch.cuda.mem_get_info(task.device)[0] if gpu else here))
    words = f"half of what {task.device} has"
    if not gpu and task.local_ranks > 1:
        words = f"half of the node's memory for {task.local_ranks} ranks"
    if gpu and here < limit:
        limit, words = here, f"the node's memory for {task.local_ranks} ranks, which decode them"
    if num_bytes > limit:
        expected = f"images of at most {limit / 2**30:.1f} GiB ({words})"
        raise InputError(
            "data.on_device", expected, f"{num_bytes / 2**30:.1f} GiB (on_device=false reads the file)"
        )


def of_images(info: BetonInfo, content: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> BetonInfo:
    """Return a beton whose images are pixels in memory, (bytes,) uint8, one behind the other."""
    sizes = 3 * heights.astype(np.int64) * widths
    offsets = np.cumsum(sizes) - sizes
    content.flags.writeable = False
    layout = replace(
        info.layout,
        content=content,
        offsets=offsets,
        sizes=sizes.astype(np.uint32),
        heights=heights.astype(np.uint16),
        widths=widths.astype(np.uint16),
        modes=np.full(len(sizes), RAW, np.uint8),
    )
    return replace(info, layout=layout, checksums=checksums(content, offsets, sizes))


def in_memory(task: Task, *, training: bool) -> Task:
    """Return a task that reads decoded images: in training whole ones; else as evaluations see them, once for all.

    Raises:
        InputError: the images take more room than there is.
        DamagedImageError: the stored bytes of an image are not what was written.
    """
    if training:
        return replace(task, info=decoded(task), cache="page")
    return replace(task, info=rendered(task), recipe=Recipe(), cache="page")


def rendered(task: Task) -> BetonInfo:
    """Return a beton whose images are what a task makes of them in epoch 0, in memory."""
    side, count = task.largest, task.info.num_images
    check_room(3 * count * side**2, task)
    content, size = np.empty((count, side, side, 3), np.uint8), task.max_batch_size
    batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    backend = make_backend(task)  # whose threads end with it
    pass_ = backend.start([Asked(batches, 0, side)])
    try:
        while (taken := pass_.take(task.config.timeout_seconds)) is not None:
            slot, images, pixels = taken
            content[images] = pixels.numpy()
            pass_.give_back(slot, None)
    finally:
        pass_.close()
    sides = np.full(count, side)
    return of_images(task.info, content.reshape(-1), sides, sides)


def decoded(task: Task) -> BetonInfo:
    """Return a beton's images as they are before any crop, in memory.

    Raises:
        DamagedImageError: the bytes of an image are not what was written.
    """
    layout = task.info.layout
    sizes = 3 * layout.heights.astype(np.int64) * layout.widths
    check_room(int(sizes.sum()), task)
    content, begins, stored = np.empty(sizes.sum(), np.uint8), np.cumsum(sizes) - sizes, stored_bytes(layout.path)
    decode = decode_by_ffcv if chosen_backend(task.config) == "ffcv" else decode_jpeg

    def part(worker: int, where: slice) -> None:
        for image in range(where.start, where.stop):
            to = content[begins[image] : begins[image] + sizes[image]]
            to[:] = whole(task.info, image, stored, decode).reshape(-1)

    workers = Workers(task.num_workers)
    try:
        workers.run(part, task.info.num_images)
    finally:
        workers.close()
    return of_images(task.info, content, layout.heights, layout.widths)


def whole(info: BetonInfo, image: int, data: np.ndarray, decode: Callable[..., np.ndarray]) -> np.ndarray:
    """Return an image, (height, width * 3) uint8, after a look at its checksum."""
    layout = info.layout
    start, size = int(layout.offsets[image]), int(layout.sizes[image])
    height, width, mode = int(layout.heights[image]), int(layout.widths[image]), int(layout.modes[image])
    if start + size > len(data) or checksums(data, np.array([start]), np.array([size]))[0] != info.checksums[image]:
        raise DamagedImageError(image)
    stored = data[start : start + size]
    if mode == JPEG:
        return decode(stored, image, height, width)
    return rgb(stored, height, width) if mode == YCBCR else stored.reshape(height, 3 * width)


def decode_by_ffcv(stored: np.ndarray, image: int, rows: int, columns: int) -> np.ndarray:
    """Return (rows, columns * 3) uint8, decoded by libffcv."""
    out, address = np.empty((rows, 3 * columns), np.uint8), stored.ctypes.data
    sizes = address, stored.size, rows, columns, out.ctypes.data, rows, columns, 0, 0, FULL, FULL, False, False
    if lib.imdecode(*sizes) != 0:
        raise DamagedImageError(image)
    return out


def draw_part(  # type: ignore[no-untyped-def]
    images, heights, widths, key, side, crop, flip, pad, cutout, erasing, out, codes
):
    """Fill out (batch, NUM_DRAWS) int64 with what is random about images of these heights and widths.

    And codes (batch, turns) int64 with RandAugment's operations: 2 * number + negative.
    """
    for position in range(len(images)):
        image, row = images[position], out[position]
        row[:4] = np.array(crop_window(crop, key, image, heights[position], widths[position], 1.0))
        row[4] = flip and flipped(key, image)
        row[5], row[6] = shift(key, image, pad) if pad else (0, 0)
        if cutout > 0:
            row[7], row[8], row[9], row[10] = hole(key, image, side, cutout)
        if erasing > 0:
            row[11], row[12], row[13], row[14] = erased(key, image, side, erasing)
            row[15] = np.int64(noise_stream(key, image))
        for turn in range(codes.shape[1]):
            number, negative = operation(key, image, turn)
            codes[position, turn] = 2 * number + negative


NUMBERS, NUMBER = array_type(types.int64, 1), types.int64
SIGNATURE = types.void(
    *[NUMBERS] * 3,
    *[NUMBER] * 3,
    types.boolean,
    NUMBER,
    NUMBER,
    types.float64,
    *[array_type(types.int64, 2)] * 2,
)


@functools.cache
def compiled_draws() -> Callable[..., None]:
    """Return draw_part in machine code, cached on disk."""
    return compiled(draw_part, SIGNATURE)


class Resident:
    """Images on a device, of which batches are made there.

    Args:
        info: a beton whose images are in memory; they are not kept there.
    """

    def __init__(self, info: BetonInfo, recipe: Recipe, max_batch_size: int, device: torch.device) -> None:
        layout = info.layout
        assert layout.content is not None
        compiled_draws()
        self.num_images, self.recipe = info.num_images, recipe
        self.max_batch_size, self.device = max_batch_size, device
        self.heights, self.widths = layout.heights.astype(np.int64), layout.widths.astype(np.int64)
        self.pixels = torch.tensor(layout.content, device=device).view(-1, 3)
        self.labels = torch.tensor(info.labels, device=device)
        begins = torch.from_numpy(layout.offsets // 3)
        self.places = torch.stack([begins, *map(torch.from_numpy, (self.heights, self.widths))], 1).to(device)

    def batches(self, epochs: Iterable[Asked]) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield images (batch, side, side, 3) uint8 and labels on the device, and ids, for what is asked for."""
        for asked in epochs:
            rand_augment = None
            if self.recipe.num_operations:
                rand_augment = RandAugment(self.recipe.magnitude, asked.side, self.send)
            for start in range(0, len(asked.batches), BATCHES):
                some = asked.batches[start : start + BATCHES]
                ids = [valid_batch(batch, self.num_images, self.max_batch_size) for batch in some]
                yield from self.some(ids, asked.key, asked.side, rand_augment)

    def some(
        self, batches: list[np.ndarray], key: int, side: int, rand_augment: RandAugment | None
    ) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield batches whose draws travel together, and with them nothing that is waited for."""
        images, sizes = np.concatenate(batches), [len(batch) for batch in batches]
        draws, codes = self.draw(images, key, side)
        largest = int(draws[:, 2].max(initial=1)), int(draws[:, 3].max(initial=1))
        turns = [arrange(part) for part in np.split(codes, np.cumsum(sizes)[:-1])]
        columns = images[:, None], draws, np.concatenate([table for table, _ in turns])
        there = self.send(np.concatenate(columns, 1)).split(sizes)
        for batch, table, (_, bounds) in zip(batches, there, turns, strict=True):
            ids, mine, order = table[:, 0], table[:, 1 : NUM_DRAWS + 1], table[:, NUM_DRAWS + 1 :]
            out = self.crop(self.places[ids], mine, largest, side)
            if rand_augment is not None:
                out = rand_augment(out, order, bounds)
            yield self.erase(out, mine), self.labels[ids], batch

    def draw(self, images: np.ndarray, key: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what is random about images, (batch, NUM_DRAWS) int64, and their operations, (batch, turns)."""
        recipe, count = self.recipe, len(images)
        out, codes = np.zeros((count, NUM_DRAWS), np.int64), np.zeros((count, recipe.num_operations), np.int64)
        options = recipe.crop, recipe.flip, recipe.pad, recipe.cutout or recipe.late_cutout, recipe.erasing
        compiled_draws()(images, self.heights[images], self.widths[images], key, side, *options, out, codes)
        return out, codes

    def send(self, table: np.ndarray) -> Tensor:
        here = torch.from_numpy(table)
        return (here.pin_memory() if self.device.type == "cuda" else here).to(self.device, non_blocking=True)

    def crop(self, places: Tensor, draws: Tensor, largest: tuple[int, int], side: int) -> Tensor:
        """Return images (batch, side, side, 3) uint8, cropped, mirrored and moved.

        Args:
            places: (batch, 3), where the pixels of each image begin, its height and its width.
            draws: (batch, NUM_DRAWS); largest: height and width of the largest windows.
        """
        recipe, begins, mirror, shifts = self.recipe, places[:, 0], draws[:, MIRROR] > 0, draws[:, SHIFT]
        if recipe.crop != RANDOM_CROP:
            return place(self.pixels, begins, side, shifts, mirror)
        early = mirror & (recipe.pad == 0)
        out = resize(self.pixels, begins, places[:, 1:], draws[:, WINDOW], early, largest, side)
        if recipe.pad:
            begins = torch.arange(len(out), device=self.device) * side**2
            out = place(out.view(-1, 3), begins, side, shifts, mirror)
        return out

    def erase(self, out: Tensor, draws: Tensor) -> Tensor:
        """Return images (batch, side, side, 3) without what cut-out and erasing take."""
        if self.recipe.cutout or self.recipe.late_cutout:
            out.masked_fill_(inside(draws[:, HOLE], out.shape[1]), 0)
        return fill_with_noise(out, draws[:, ERASED], draws[:, STREAM]) if self.recipe.erasing else out
