"""The backend that stands on FFCV: its loader around our decoder, its process cache, our passes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence

import numpy as np

from kapdist.data.load.decode import Decoder, compile_for
from kapdist.data.load.ffcv import (
    EpochIterator,
    FFCVLoader,
    OrderOption,
    RGBImageField,
    nothing_compiled,
    torch_threads_kept,
)
from kapdist.data.load.passes import Pass
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.storage import MappedFile, PagedFile, Storage, StoredFile
from kapdist.data.load.task import Asked, Task
from kapdist.data.load.workers import Workers


class FFCVPass(Pass):
    """Decodes by FFCV's pipeline.

    FFCV's own iterator lets its caller wait for ever when its thread dies, counts on everyone keeping step with
    the ring, leaves the thread behind when an epoch is left early, and cuts all batches to one size: only the step
    in which it runs the pipeline is called, with this in its place.
    """

    def __init__(
        self, loader: FFCVLoader, asked: Iterable[Asked], rings: Rings, task: Task, file: StoredFile
    ) -> None:
        self.loader, self.task, self.file = loader, task, file
        self.memory_context: Storage | None = None
        self.metadata = loader.reader.metadata  # of no image: the decoder has tables of its own
        self.cuda_streams = [None] * num_slots(loader)  # the device copy is the caller's, on the caller's stream
        self.begin(asked, rings, task)

    def open(self, asked: Asked) -> None:
        # What FFCV hands to the decoder, and whom it tells of each batch.
        self.memory_context = storage = self.storage(asked.batches)
        self.storage_state = storage, asked.key, asked.side

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        self.memory_allocations = ring.memory
        (images,) = EpochIterator.run_pipeline(self, number, indices, slot, None)
        return images

    def let_go(self) -> None:
        storage, self.memory_context = self.memory_context, None
        if storage is not None:
            storage.close()

    def storage(self, batches: Sequence[np.ndarray]) -> Storage:
        return PagedFile(self.file, batches) if self.task.cache == "process" else MappedFile(self.file)


def num_slots(loader: FFCVLoader) -> int:
    return loader.batches_ahead + 2


def make_ring(loader: FFCVLoader, max_batch_size: int) -> Ring:
    return Ring(loader.graph.allocate_memory(max_batch_size, num_slots(loader)), num_slots(loader))


class FFCVBackend:
    """Decodes in threads of this process, with libffcv."""

    def __init__(self, task: Task) -> None:
        workers = Workers(task.num_workers)
        self.task, self.workers, self.file = task, workers, StoredFile(task.info.layout)
        weakref.finalize(self, workers.close)
        compile_for(task.recipe)
        decoder = Decoder(task.recipe, task.largest, task.info.layout, task.info.checksums, workers)
        self.pipeline = make_pipeline(decoder, task)
        self.rings = Rings(functools.partial(make_ring, self.pipeline, task.max_batch_size))
        weakref.finalize(self, self.rings.close)

    def start(self, asked: Iterable[Asked]) -> FFCVPass:
        return FFCVPass(self.pipeline, asked, self.rings, self.task, self.file)


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
            custom_fields={"image": RGBImageField},  # whatever the decoder makes of them
            batches_ahead=task.config.batches_ahead,
        )
    # Tables that our decoder has its own of: 48 bytes per image of every rank.
    nothing = loader.reader.metadata[:0].copy()
    loader.reader.metadata = loader.graph.metadata = nothing
    decoder.metadata, loader.reader.alloc_table = nothing["f0"], None
    return loader
