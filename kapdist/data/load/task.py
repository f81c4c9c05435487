"""What a backend is asked for, and what it promises: passes over batches, decoded ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo
from kapdist.data.load.pixels import Recipe


@dataclass(frozen=True)
class Task:
    """What a backend is made for.

    largest is the largest resolution, pixels, and max_batch_size the most images that will be asked for at a time;
    cache is page or process; local_ranks are the processes that do the same on this node.
    """

    info: BetonInfo
    config: DataConfig
    recipe: Recipe
    largest: int
    max_batch_size: int
    num_workers: int
    device: torch.device
    cache: str
    local_ranks: int = 1


class Asked(NamedTuple):
    """Batches of one epoch, as a backend is asked for them."""

    batches: Sequence[np.ndarray]
    """Image ids of each."""
    key: int
    """The epoch's (augment.epoch_key)."""
    side: int
    """The resolution, pixels."""


class Decoded(Protocol):
    """One pass over some batches: they are decoded ahead, taken in turn, and given back."""

    def take(self, timeout_seconds: float) -> tuple[Any, np.ndarray, Tensor] | None:
        """Return (slot, image ids, pixels) of the next batch, uint8 (batch, side, side, 3), on the CPU; then None.

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

    def start(self, asked: Iterable[Asked]) -> Decoded:
        """Begin a pass over the batches of some epochs, which are asked for as the pass comes to them."""
