"""What decodes: FFCV's machinery, or simplejpeg where there is no FFCV. The same order, crops and flips."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo
from kapdist.data.load.ffcv_import import why_no_ffcv
from kapdist.data.load.pixels import Recipe
from kapdist.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a backend is made for.

    largest is the largest resolution, pixels, and max_batch_size the most images that will be asked for at a time;
    cache is page or process.
    """

    info: BetonInfo
    config: DataConfig
    recipe: Recipe
    largest: int
    max_batch_size: int
    num_workers: int
    device: torch.device
    cache: str


class Decoded(Protocol):
    """One pass over some batches: they are decoded ahead, taken in turn, and given back."""

    def take(self, timeout_seconds: float) -> tuple[Any, np.ndarray, Tensor]:
        """Return (slot, image ids, pixels) of the next batch, uint8 (batch, side, side, 3), on the CPU.

        Raises:
            TimeoutError: the batch did not come in time.
            DamagedImageError: the stored bytes of an image are not what was written, or no image.
        """

    def give_back(self, slot: Any, event: torch.cuda.Event | None) -> None:
        """Let the memory of a batch be used again, after `event` has happened."""

    def close(self) -> None:
        """End the threads of the pass; no longer than the batch that they are at."""


class Backend(Protocol):
    """A way to decode."""

    def start(self, index_batches: Sequence[np.ndarray], key: int, side: int) -> Decoded:
        """Begin a pass with an epoch's key (augment.epoch_key) at a resolution, pixels."""


def make_backend(task: Task) -> Backend:
    """Return the backend that data.backend names; auto takes FFCV where it can be imported.

    Raises:
        InputError: FFCV is asked for and cannot be imported, or simplejpeg is needed and cannot.
    """
    return BACKENDS[chosen_backend(task.config)](task)


def chosen_backend(config: DataConfig) -> str:
    """Return the name of the backend.

    Raises:
        InputError: FFCV is asked for and cannot be imported.
    """
    missing = why_no_ffcv()
    if config.backend == "ffcv" and missing:
        raise InputError("data.backend", "FFCV (or data.backend=torch)", f"none: {missing}")
    if config.backend == "auto":
        if missing:
            log.warning("data.backend=auto takes torch: FFCV cannot be imported (%s)", missing)
        return "torch" if missing else "ffcv"
    return config.backend


def ffcv_backend(task: Task) -> Backend:
    from kapdist.data.load.ffcv import FFCVBackend

    return FFCVBackend(task)


def torch_backend(task: Task) -> Backend:
    from kapdist.data.load.simplejpeg import TorchBackend

    return TorchBackend(task)


BACKENDS: dict[str, Callable[[Task], Backend]] = {"ffcv": ffcv_backend, "torch": torch_backend}


def valid_batch(batch: np.ndarray, num_images: int, max_batch_size: int) -> np.ndarray:
    """Return a copy of some image ids that jitted code, which checks nothing, can index with.

    Raises:
        ValueError: more than max_batch_size.
        IndexError: there is no such image.
    """
    indices = np.array(batch, dtype=np.int64, ndmin=1)
    if len(indices) > max_batch_size:
        raise ValueError(f"a batch of {len(indices)} images in a loader of max_batch_size {max_batch_size}")
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_images:
        raise IndexError(f"image ids {indices.min()} to {indices.max()} in a beton of {num_images} images")
    return indices
