"""A pass with FFCV: its pipeline without its thread's ways to hang, to leak and to overwrite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kapdist.data.load.ffcv_import import EpochIterator, FFCVLoader
from kapdist.data.load.passes import Pass
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.storage import Storage


class Epoch(Pass, EpochIterator):
    """Decodes by FFCV's pipeline.

    FFCV's own iterator lets its caller wait for ever when its thread dies, counts on everyone keeping step with
    the ring, leaves the thread behind when an epoch is left early, and cuts all batches to one size.
    """

    def __init__(
        self,
        loader: FFCVLoader,
        batches: Sequence[np.ndarray],
        storage: Storage,
        key: int,
        side: int,
        rings: Rings,
        *,
        num_images: int,
        max_batch_size: int,
        name: str,
    ) -> None:
        self.loader, self.storage = loader, storage
        # What FFCV hands to the decoder, and whom it tells of each batch.
        self.storage_state, self.memory_context = (storage, key, side), storage
        self.metadata = loader.reader.metadata  # of no image: the decoder has tables of its own
        self.cuda_streams = [None] * num_slots(loader)  # the device copy is the caller's, on the caller's stream
        self.begin(batches, rings, num_images=num_images, max_batch_size=max_batch_size, name=name)

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        self.memory_allocations = ring.memory
        (images,) = self.run_pipeline(number, indices, slot, None)
        return images

    def let_go(self) -> None:
        self.storage.close()


def num_slots(loader: FFCVLoader) -> int:
    return loader.batches_ahead + 2


def make_ring(loader: FFCVLoader, max_batch_size: int) -> Ring:
    return Ring(loader.graph.allocate_memory(max_batch_size, num_slots(loader)), num_slots(loader))
