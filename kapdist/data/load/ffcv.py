"""The backend that stands on FFCV: its loader around our decoder, its process cache, our passes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence

import numpy as np

from kapdist.data.load.backend import Task
from kapdist.data.load.decode import Decoder, compiled_decode
from kapdist.data.load.epoch import Epoch, make_ring
from kapdist.data.load.ffcv_import import FFCVLoader, OrderOption, nothing_compiled, torch_threads_kept
from kapdist.data.load.ring import Rings
from kapdist.data.load.storage import MappedFile, PagedFile, Storage
from kapdist.data.load.workers import Workers


class FFCVBackend:
    """Decodes in threads of this process, with libffcv."""

    def __init__(self, task: Task) -> None:
        workers = Workers(task.num_workers)
        self.task, self.workers = task, workers
        weakref.finalize(self, workers.close)
        compiled_decode()
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
