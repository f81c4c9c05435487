"""One pass over some batches: a thread that decodes ahead into a ring, for either backend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np
import torch
from torch import Tensor

from kapdist.data.load.ring import Ring, Rings

CLOSE_SECONDS = 30.0  # far more than a batch takes; a thread that hangs is a daemon and left to itself


class Pass(threading.Thread):
    """Decodes ahead into a ring of buffers; a buffer is used again only after it was given back.

    Whoever inherits from it says how a batch is decoded, and what is to be let go of at the end.
    """

    def begin(
        self, batches: Sequence[np.ndarray], rings: Rings, *, num_images: int, max_batch_size: int, name: str
    ) -> None:
        """Start the thread: the last step of making a pass."""
        threading.Thread.__init__(self, daemon=True, name=f"kapdist-load {name}")
        self.batches, self.num_images, self.max_batch_size = batches, num_images, max_batch_size
        self.closed = False
        self.ending = threading.Event()
        self.rings, self.ring = rings, rings.take()
        self.decoded: SimpleQueue[tuple[int, np.ndarray, Tensor] | BaseException] = SimpleQueue()
        self.free: SimpleQueue[int | None] = SimpleQueue()
        for slot in range(len(self.ring.events)):
            self.free.put(slot)
        self.start()

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        """Return the pixels of a batch, uint8 (batch, side, side, 3), in the memory of a slot."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Let go of what the pass reads from."""

    def run(self) -> None:
        try:
            for number, batch in enumerate(self.batches):
                indices = valid_batch(batch, self.num_images, self.max_batch_size)
                slot = self.free.get()
                if slot is None or self.ending.is_set():
                    return
                self.ring.wait(slot)
                images = self.decode(number, indices, self.ring, slot)
                self.decoded.put((slot, indices, torch.from_numpy(images)))
        except BaseException as error:
            self.decoded.put(error)

    def take(self, timeout_seconds: float) -> tuple[int, np.ndarray, Tensor]:
        """Return (slot, image ids, pixels in the ring) of the next batch.

        Raises:
            TimeoutError: the batch did not come in time.
            Exception: whatever ended the loading thread, the same object.
        """
        try:
            answer = self.decoded.get(timeout=timeout_seconds)
        except Empty:
            self.closed = True  # nobody waits for a thread that hangs, and its ring is lost
            self.ending.set()
            self.free.put(None)
            self.let_go()
            raise TimeoutError from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def give_back(self, slot: int, event: torch.cuda.Event | None = None) -> None:
        """Let the thread fill a slot again, after `event` (CUDA) has happened."""
        self.ring.events[slot] = event
        self.free.put(slot)

    def close(self) -> None:
        """End the thread and wait for it; no longer than the batch it is at. Whoever holds a slot gave it back."""
        if self.closed:
            return
        self.closed = True
        self.ending.set()
        self.free.put(None)
        if threading.current_thread() is not self:
            self.join(CLOSE_SECONDS)
        self.let_go()
        if not self.is_alive():
            self.rings.give_back(self.ring)


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
