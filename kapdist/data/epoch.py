"""One pass over some batches: FFCV's loading thread without its ways to hang, to leak and to overwrite."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kapdist.data.backend import valid_batch
from kapdist.data.guard import EpochIterator, FFCVLoader
from kapdist.data.storage import Storage

CLOSE_SECONDS = 30.0  # far more than a batch takes; a thread that hangs is a daemon and left to itself


class Epoch(EpochIterator):
    """Decodes ahead into a ring of buffers; a buffer is used again only after it was given back.

    FFCV's own iterator lets its caller wait for ever when this thread dies, counts on everyone keeping step with
    the ring, leaves the thread behind when an epoch is left early, and cuts all batches to one size.
    """

    def __init__(
        self,
        loader: FFCVLoader,
        batches: Sequence[np.ndarray],
        storage: Storage,
        key: int,
        side: int,
        *,
        num_images: int,
        max_batch_size: int,
        name: str,
    ) -> None:
        threading.Thread.__init__(self, daemon=True, name=f"kapdist-load {name}")
        self.loader, self.batches, self.storage = loader, batches, storage
        self.num_images, self.max_batch_size = num_images, max_batch_size
        self.closed = False
        self.terminate_event = threading.Event()
        # What FFCV hands to the decoder, and whom it tells of each batch.
        self.storage_state, self.memory_context = (storage, key, side), storage
        self.metadata = loader.reader.metadata  # of no image: the decoder has tables of its own
        num_slots = loader.batches_ahead + 2
        self.cuda_streams = [None] * num_slots  # the device copy is the caller's, on the caller's stream
        self.memory_allocations = loader.graph.allocate_memory(max_batch_size, num_slots)
        self.output_queue: SimpleQueue[tuple[int, np.ndarray, Tensor] | BaseException] = SimpleQueue()
        self.free: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        for slot in range(num_slots):
            self.free.put((slot, None))
        self.start()

    def run(self) -> None:
        try:
            for number, batch in enumerate(self.batches):
                indices = valid_batch(batch, self.num_images, self.max_batch_size)
                taken = self.free.get()
                if taken is None or self.terminate_event.is_set():
                    return
                slot, event = taken
                if event is not None:
                    event.synchronize()  # the device has read what this buffer held
                (images,) = self.run_pipeline(number, indices, slot, None)
                self.output_queue.put((slot, indices, torch.from_numpy(images)))
        except BaseException as error:
            self.output_queue.put(error)

    def take(self, timeout_seconds: float) -> tuple[int, np.ndarray, Tensor]:
        """Return (slot, image ids, pixels in the ring) of the next batch.

        Raises:
            TimeoutError: the batch did not come in time.
            Exception: whatever ended the loading thread, the same object.
        """
        try:
            answer = self.output_queue.get(timeout=timeout_seconds)
        except Empty:
            self.closed = True  # nobody waits for a thread that hangs
            self.terminate_event.set()
            self.free.put(None)
            self.storage.close()
            raise TimeoutError from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def give_back(self, slot: int, event: torch.cuda.Event | None = None) -> None:
        """Let the thread fill a slot again, after `event` (CUDA) has happened."""
        self.free.put((slot, event))

    def close(self) -> None:
        """End the thread and wait for it; no longer than the batch it is at."""
        if self.closed:
            return
        self.closed = True
        self.terminate_event.set()
        self.free.put(None)
        if threading.current_thread() is not self:
            self.join(CLOSE_SECONDS)
        self.storage.close()
