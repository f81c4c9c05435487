"""Batches from a beton, for training, evaluation and attacks alike."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo, DamagedImageError, check_side
from kapdist.data.load.augment import epoch_key
from kapdist.data.load.backend import make_backend
from kapdist.data.load.device import Mover, Sent
from kapdist.data.load.pixels import CENTRE_CROP, NO_CROP, RANDOM_CROP, Recipe
from kapdist.data.load.resample import INTERPOLATIONS
from kapdist.data.load.resident import Resident, in_memory
from kapdist.data.load.task import Asked, Decoded, Task
from kapdist.environment import usable_cpus
from kapdist.errors import InputError


class Batch(NamedTuple):
    """Images of a step, owned by the caller."""

    images: Tensor  # (batch, 3, resolution, resolution) float32 in [0, 1], on the loader's device
    labels: Tensor  # (batch,) int64, on the loader's device
    indices: np.ndarray  # (batch,) int64, the images' ids: their positions in the beton


class Epoch(NamedTuple):
    """Batches of an epoch, at one resolution."""

    index_batches: Sequence[np.ndarray]
    """Image ids of each batch."""
    number: int = 0
    """Decides the augmentation, with the seed and the image's id."""
    resolution: int | None = None
    """Pixels; None takes the config's."""


class Loader:
    """Decodes the images that it is asked for, in the order asked, by threads of its own.

    Args:
        training: apply the config's crop and augmentation; else the whole image, or the centre crop.
        seed: of the augmentation, with the epoch and the image's id.
        max_batch_size: images of the largest batch that will be asked for.
        num_workers: decoding threads; 0 takes the CPUs that this process may use.
        channels_last: memory format of the images.
        cache: page or process, as the plan says; None takes the config's.
        local_ranks: of this node, which share its memory.

    Raises:
        InputError: images that are not of config.resolution with crop none; more workers than CPUs; a backend that
            is not there.
    """

    def __init__(
        self,
        info: BetonInfo,
        config: DataConfig,
        *,
        training: bool,
        seed: int,
        max_batch_size: int,
        device: torch.device,
        num_workers: int = 0,
        channels_last: bool = True,
        cache: str | None = None,
        local_ranks: int = 1,
    ) -> None:
        self.info, self.config = info, config
        self.seed, self.max_batch_size = seed, max_batch_size
        self.device, self.channels_last = torch.device(device), channels_last
        self.largest = largest_resolution(config, training)
        self.mover = Mover(self.device, channels_last)
        num_workers = num_workers or usable_cpus()
        if not 1 <= num_workers <= usable_cpus():
            raise InputError("data.workers", f"1 to {usable_cpus()} (CPUs of this process)", str(num_workers))
        recipe, cache = make_recipe(info, config, training=training), cache or config.cache
        task = Task(
            info, config, recipe, self.largest, max_batch_size, num_workers, self.device, cache, local_ranks
        )
        if config.on_device:
            with damage_named(info):
                task = in_memory(task, training=training)
        self.resident = None
        if config.on_device and self.device.type == "cuda":
            self.resident = Resident(task.info, task.recipe, max_batch_size, self.device)
        else:
            self.backend = make_backend(task)

    def batches(
        self, index_batches: Sequence[np.ndarray], *, epoch: int = 0, resolution: int | None = None
    ) -> Iterator[Batch]:
        """Yield a Batch for every array of image ids, each (batch,) of at most max_batch_size.

        The images are of `resolution`, pixels, at most the largest that the config names; config.resolution else.
        Nothing else is decoded, nothing dropped or repeated. The iterator may be left at any time, and several
        may be open at once.

        Raises:
            InputError: the bytes of an image are not those that were written.
            TimeoutError: a batch took longer than config.timeout_seconds.
            Exception: whatever went wrong in the loading thread, as it was raised there.
        """
        return self.stream([Epoch(index_batches, epoch, resolution)])

    def stream(self, epochs: Iterable[Epoch]) -> Iterator[Batch]:
        """Yield the batches of epoch after epoch, as `batches` does those of one.

        Epochs are asked for by the thread that decodes, ahead of the batches: those of the next one are decoded
        while the last ones of this are used, or whatever else is done between two batches.
        """
        asked = map(self.ask, epochs)
        if self.resident is not None:
            for pixels, labels, indices in self.resident.batches(asked):
                yield Batch(self.mover.on_device(pixels), labels, indices)
            return
        pass_ = self.backend.start(asked)
        under_way: deque[tuple[Any, np.ndarray, Sent]] = deque()
        try:
            for number in itertools.count():
                taken = self.take(pass_, number)
                if taken is None:
                    break
                slot, indices, pixels = taken
                sent = self.mover.send(pixels, torch.from_numpy(self.info.labels[indices]))
                under_way.append((slot, indices, sent))
                if len(under_way) > self.mover.ahead:
                    yield self.receive(pass_, *under_way.popleft())
            while under_way:
                yield self.receive(pass_, *under_way.popleft())
        finally:
            for slot, _, sent in under_way:  # left early: the device may still be reading
                pass_.give_back(slot, sent.arrived)
            pass_.close()

    def ask(self, epoch: Epoch) -> Asked:
        side = epoch.resolution or self.config.resolution
        if not 1 <= side <= self.largest:
            raise ValueError(f"resolution {side} in a loader of at most {self.largest}")
        return Asked(epoch.index_batches, epoch_key(self.seed, epoch.number), side)

    def receive(self, pass_: Decoded, slot: Any, indices: np.ndarray, sent: Sent) -> Batch:
        images, labels = self.mover.receive(sent)
        pass_.give_back(slot, sent.arrived)
        return Batch(images, labels, indices)

    def take(self, pass_: Decoded, number: int) -> tuple[Any, np.ndarray, Tensor] | None:
        limit = self.config.timeout_seconds
        try:
            with damage_named(self.info):
                return pass_.take(limit)
        except TimeoutError:
            place = f"batch {number} of this pass over {self.info.path}"
            raise TimeoutError(f"{place} did not come within data.timeout_seconds = {limit:g}") from None


def read_once(config: DataConfig) -> DataConfig:
    """Return how the images of a run are read by whoever reads each once, on whatever machine: to the same pixels.

    FFCV, a cache of its own and memory for all images are what the training's machine had.
    """
    backend = "torch" if config.backend == "torch" else "auto"
    return config.model_copy(update={"backend": backend, "cache": "page", "on_device": False})


@contextlib.contextmanager
def damage_named(info: BetonInfo) -> Iterator[None]:
    """Raise InputError for a damaged image."""
    try:
        yield
    except DamagedImageError as damaged:
        found = "other bytes (kapdist data check lists all damage)"
        raise InputError(info.path, f"image {damaged.image} as it was written", found) from damaged


def largest_resolution(config: DataConfig, training: bool) -> int:
    """Return the largest resolution of a loader's passes, pixels."""
    return max(config.resolution, config.max_resolution or 0) if training else config.resolution


def make_recipe(info: BetonInfo, config: DataConfig, *, training: bool) -> Recipe:
    """Return what is done to every image.

    Raises:
        InputError: crop none, and images that are not of the model's resolution.
    """
    if config.crop == "none":
        check_side(info, config.resolution)
        return augmented(Recipe(NO_CROP), config) if training else Recipe()
    if not training:
        interpolation = INTERPOLATIONS[config.interpolation]
        return Recipe(CENTRE_CROP, centre_ratio=config.crop_ratio, interpolation=interpolation)
    return augmented(Recipe(RANDOM_CROP, reduced=config.decode == "reduced"), config)


def augmented(recipe: Recipe, config: DataConfig) -> Recipe:
    """Return a recipe with all that the config asks for after the crop."""
    late = config.rand_augment > 0
    return replace(
        recipe,
        flip=config.flip,
        pad=config.translate,
        cutout=0 if late else config.cutout,
        num_operations=config.rand_augment,
        magnitude=config.rand_augment_magnitude,
        late_cutout=config.cutout if late else 0,
        erasing=config.erasing,
    )
