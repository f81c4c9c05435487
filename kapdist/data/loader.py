"""Batches from a beton, for training, evaluation and attacks alike."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kapdist.config import DataConfig
from kapdist.data.augment import epoch_key
from kapdist.data.beton import BetonInfo
from kapdist.data.decode import (
    CENTRE_CROP,
    NO_CROP,
    RANDOM_CROP,
    Decoder,
    Recipe,
    compiled_decode,
)
from kapdist.data.epoch import Epoch
from kapdist.data.errors import DamagedImageError
from kapdist.data.guard import FFCVLoader, OrderOption, nothing_compiled, torch_threads_kept
from kapdist.data.workers import Workers
from kapdist.environment import usable_cpus
from kapdist.errors import InputError


class Batch(NamedTuple):
    """Images of a step, owned by the caller."""

    images: Tensor  # (batch, 3, resolution, resolution) float32 in [0, 1], on the loader's device
    labels: Tensor  # (batch,) int64, on the loader's device
    indices: np.ndarray  # (batch,) int64, the images' ids: their positions in the beton


class Loader:
    """Decodes the images that it is asked for, in the order asked, on threads of its own.

    Args:
        training: apply the config's crop, flip, translation and cut-out; else the whole image, or the centre crop.
        seed: of the augmentation, with the epoch and the image's id.
        max_batch_size: images of the largest batch that will be asked for.
        num_workers: decoding threads; 0 takes the CPUs that this process may use.
        channels_last: memory format of the images.

    Raises:
        InputError: images that are not of config.resolution with crop none; more threads than CPUs.
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
    ) -> None:
        self.info, self.config = info, config
        self.seed, self.max_batch_size = seed, max_batch_size
        self.device, self.channels_last = torch.device(device), channels_last
        recipe = make_recipe(info, config, training=training)
        workers = Workers(num_workers or usable_cpus())
        self.workers = workers
        weakref.finalize(self, workers.close)
        compiled_decode()
        self.pipeline = make_pipeline(info, Decoder(recipe, info.layout, info.checksums, workers), config)

    def batches(self, index_batches: Sequence[np.ndarray], *, epoch: int = 0) -> Iterator[Batch]:
        """Yield a Batch for every array of image ids, each (batch,) of at most max_batch_size.

        Nothing else is decoded, nothing dropped or repeated. The iterator may be left at any time, and several
        may be open at once.

        Raises:
            InputError: the bytes of an image are not those that were written.
            TimeoutError: a batch took longer than config.timeout_seconds.
            Exception: whatever went wrong in the loading thread, as it was raised there.
        """
        pass_ = Epoch(
            self.pipeline,
            index_batches,
            epoch_key(self.seed, epoch),
            max_batch_size=self.max_batch_size,
            name=self.info.path.name,
        )
        try:
            for number in range(len(index_batches)):
                slot, indices, pixels = self.take(pass_, number)
                images, event = self.to_device(pixels)
                pass_.give_back(slot, event)
                labels = torch.from_numpy(self.info.labels[indices]).to(self.device)
                yield Batch(images, labels, indices)
        finally:
            pass_.close()

    def take(self, pass_: Epoch, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        limit = self.config.timeout_seconds
        try:
            return pass_.take(limit)
        except TimeoutError:
            place = f"batch {number} of this pass over {self.info.path}"
            raise TimeoutError(f"{place} did not come within data.timeout_seconds = {limit:g}") from None
        except DamagedImageError as damaged:
            found = "other bytes (kapdist data check lists all damage)"
            raise InputError(self.info.path, f"image {damaged.image} as it was written", found) from damaged

    def to_device(self, pixels: np.ndarray) -> tuple[Tensor, torch.cuda.Event | None]:
        """Copy (batch, height, width, 3) uint8 out of the ring; return the images and when the ring is free."""
        stored = torch.from_numpy(pixels)
        event = None
        if self.device.type == "cuda":
            stored = stored.to(self.device, non_blocking=True)  # bytes: a quarter of the traffic of floats
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        # The conversion is the copy, on the CPU; permuting keeps the bytes, which are channels-last already.
        images = stored.permute(0, 3, 1, 2).float().div_(255)
        return images if self.channels_last else images.contiguous(), event


def make_recipe(info: BetonInfo, config: DataConfig, *, training: bool) -> Recipe:
    """Return what is done to every image.

    Raises:
        InputError: crop none, and images that are not of the model's resolution.
    """
    side = config.resolution
    if config.crop == "none":
        if (info.height, info.width) != (side, side):
            size = "of different sizes" if None in (info.height, info.width) else f"of {info.height} x {info.width}"
            expected = f"{side} x {side} images (data.resolution) with data.crop=none"
            raise InputError(info.path, expected, f"images {size}")
        if not training:
            return Recipe(side)
        return Recipe(side, NO_CROP, pad=config.translate, flip=config.flip, cutout=config.cutout)
    if not training:
        return Recipe(side, CENTRE_CROP, centre_ratio=config.crop_ratio)
    return Recipe(side, RANDOM_CROP, pad=config.translate, flip=config.flip, cutout=config.cutout)


def make_pipeline(info: BetonInfo, decoder: Decoder, config: DataConfig) -> FFCVLoader:
    """Return FFCV's loader around our decoder; its order, threads and drop_last are never used.

    The operating system caches the file: what does not fit is read again from disk, and nothing is locked.
    """
    with torch_threads_kept(), nothing_compiled():
        return FFCVLoader(
            str(info.path),
            batch_size=1,
            num_workers=1,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            seed=0,
            pipelines={"image": [decoder], "label": None},
            drop_last=False,
            batches_ahead=config.batches_ahead,
        )
