"""The backend that stands on FFCV: its loader around our decoder, its process cache, our passes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence

import numpy as np

from kapdist.data.load.decode import Decoder, compile_for
from kapdist.data.load.ffcv import EpochIterator, FFCVLoader, OrderOption, nothing_compiled, torch_threads_kept
from kapdist.data.load.passes import Pass
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.storage import MappedFile, PagedFile, Storage
from kapdist.data.load.task import Task
from kapdist.data.load.workers import Workers


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


class FFCVBackend:
    """Decodes in threads of this process, with libffcv."""

    def __init__(self, task: Task) -> None:
        workers = Workers(task.num_workers)
        self.task, self.workers = task, workers
        weakref.finalize(self, workers.close)
        compile_for(task.recipe)
        decoder = Decoder(task.recipe, task.largest, task.info.layout, task.info.checksums, workers)
        self.pipeline = make_pipeline(decoder, task)
        self.rings = Rings(functools.partial(make_ring, self.pipeline, task.max_batch_size))

    def start(self, index_batches: Sequence[np.ndarray], key: int, side: int) -> Epoch:
        info = self.task.info
        return Epoch(
            self.pipeline,
            index_batches,
            self.storage(index_batches),
            key,
            side,
            self.rings,
            num_images=info.num_images,
            max_batch_size=self.task.max_batch_size,
            name=info.path.name,
        )

    def storage(self, index_batches: Sequence[np.ndarray]) -> Storage:
        layout = self.task.info.layout
        return PagedFile(layout, index_batches) if self.task.cache == "process" else MappedFile(layout)


def make_pipeline(decoder: Decoder, task: Task) -> FFCVLoader:
    """Return FFCV's loader around our decoder; its order, threads, caches and drop_last are never used."""
    with torch_threads_kept(), nothing_compiled():
        loader = FFCVLoader(
            str(task.info.path),
            batch_size=1,
            num_workers=1,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            seed=0,
            pipelines={"image": [decoder], "label": None},
            drop_last=False,
            batches_ahead=task.config.batches_ahead,
        )
    # Tables that our decoder has its own of: 48 bytes per image of every rank.
    nothing = loader.reader.metadata[:0].copy()
    loader.reader.metadata = loader.graph.metadata = nothing
    decoder.metadata, loader.reader.alloc_table = nothing["f0"], None
    return loader
