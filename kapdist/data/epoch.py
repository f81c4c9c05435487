"""One pass over some batches: FFCV's loading thread without its ways to hang, to leak and to overwrite."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from kapdist.data.guard import EpochIterator, FFCVLoader

CLOSE_SECONDS = 30.0  # far more than a batch takes; a thread that hangs is a daemon and left to itself


class Epoch(EpochIterator):
    """Decodes ahead into a ring of buffers; a buffer is used again only after it was given back.

    FFCV's own iterator lets its caller wait for ever when this thread dies, counts on everyone keeping step with
    the ring, leaves the thread behind when an epoch is left early, and cuts all batches to one size.
    """

    def __init__(
        self, loader: FFCVLoader, batches: Iterable[np.ndarray], key: int, *, max_batch_size: int, name: str
    ) -> None:
        threading.Thread.__init__(self, daemon=True, name=f"kapdist-load {name}")
        self.loader, self.batches = loader, batches
        self.max_batch_size = max_batch_size
        self.closed = False
        self.terminate_event = threading.Event()
        self.memory_context = loader.memory_manager.schedule_epoch([])
        self.memory_context.__enter__()
        # What FFCV hands to the decoder: the file, and the key of this epoch's draws.
        self.storage_state = (np.asarray(self.memory_context.state[0]), key)
        self.metadata = loader.reader.metadata
        num_slots = loader.batches_ahead + 2
        self.cuda_streams = [None] * num_slots  # the device copy is the caller's, on the caller's stream
        self.memory_allocations = loader.graph.allocate_memory(max_batch_size, num_slots)
        self.output_queue: SimpleQueue[tuple[int, np.ndarray, np.ndarray] | BaseException] = SimpleQueue()
        self.free: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        for slot in range(num_slots):
            self.free.put((slot, None))
        self.start()

    def run(self) -> None:
        try:
            for number, batch in enumerate(self.batches):
                indices = self.valid(batch)
                taken = self.free.get()
                if taken is None or self.terminate_event.is_set():
                    return
                slot, event = taken
                if event is not None:
                    event.synchronize()  # the device has read what this buffer held
                (images,) = self.run_pipeline(number, indices, slot, None)
                self.output_queue.put((slot, indices, images))
        except BaseException as error:
            self.output_queue.put(error)

    def valid(self, batch: np.ndarray) -> np.ndarray:
        """Return a copy that jitted code, which checks nothing, can index with."""
        indices = np.array(batch, dtype=np.int64, ndmin=1)
        num_images = len(self.metadata)
        if len(indices) > self.max_batch_size:
            raise ValueError(
                f"a batch of {len(indices)} images in a loader of max_batch_size {self.max_batch_size}"
            )
        if len(indices) and not 0 <= indices.min() <= indices.max() < num_images:
            raise IndexError(f"image ids {indices.min()} to {indices.max()} in a beton of {num_images} images")
        return indices

    def take(self, timeout_seconds: float) -> tuple[int, np.ndarray, np.ndarray]:
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
            raise TimeoutError from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def give_back(self, slot: int, event: Any = None) -> None:
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
        self.memory_context.__exit__(None, None, None)
