"""One pass over the batches of some epochs: a ring's thread decodes ahead, for either backend."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.task import Asked, Task

T = TypeVar("T")

PARTS = 16  # of the time that a batch has
OURS = "kapdist-"  # how the names of threads begin that decode, save or watch
CLOSE_SECONDS = 30.0  # far more than a batch takes; a thread that hangs is a daemon and left to itself

OPEN: WeakSet[Pass] = WeakSet()
"""Passes that nobody has closed yet; of this process alone."""


def close_all() -> None:
    """Close what a traceback still holds; when the interpreter has ended, no thread answers any more."""
    for open_pass in list(OPEN):
        open_pass.close()


atexit.register(close_all)
os.register_at_fork(after_in_child=OPEN.clear)  # their threads are the parent's


class Pass:
    """Decodes ahead into a ring of buffers; a buffer is used again only after it was given back.

    What is asked for comes epoch by epoch, to the thread that decodes: the first batch of an epoch is decoded
    while the last ones of the one before are used. Whoever inherits from it says how a batch is decoded, what
    an epoch reads from, and what is to be let go of at its end.
    """

    def begin(self, asked: Iterable[Asked], rings: Rings, task: Task) -> None:
        """Let the thread begin: the last step of making a pass."""
        self.asked, self.num_images, self.max_batch_size = asked, task.info.num_images, task.max_batch_size
        self.ending, self.ended = threading.Event(), threading.Event()
        self.rings, self.ring = rings, rings.take()
        self.decoded: SimpleQueue[tuple[int, np.ndarray, Tensor] | BaseException | None] = SimpleQueue()
        self.free: SimpleQueue[int | None] = SimpleQueue()
        for slot in range(len(self.ring.events)):
            self.free.put(slot)
        OPEN.add(self)
        self.ring.run(self.run, f"kapdist-load {task.info.path.name}")

    def open(self, asked: Asked) -> None:
        """Get ready for the batches of an epoch."""

    def decode(self, number: int, indices: np.ndarray, ring: Ring, slot: int) -> np.ndarray:
        """Return the pixels of a batch, uint8 (batch, side, side, 3), in the memory of a slot."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Let go of what an epoch reads from, if it has not been done."""

    def run(self) -> None:
        try:
            for asked in self.asked:
                if self.ending.is_set() or not self.run_epoch(asked):
                    return
            self.decoded.put(None)
        except BaseException as error:
            self.decoded.put(error)
        finally:
            self.ended.set()

    def run_epoch(self, asked: Asked) -> bool:
        """Decode the batches of an epoch; return whether nobody asked for the pass's end."""
        self.open(asked)
        try:
            for number, batch in enumerate(asked.batches):
                indices = valid_batch(batch, self.num_images, self.max_batch_size)
                slot = self.free.get()
                if slot is None or self.ending.is_set():
                    return False
                self.ring.wait(slot)
                images = self.decode(number, indices, self.ring, slot)
                self.decoded.put((slot, indices, torch.from_numpy(images)))
            return True
        finally:
            self.let_go()

    def take(self, timeout_seconds: float) -> tuple[int, np.ndarray, Tensor] | None:
        """Return (slot, image ids, pixels in the ring) of the next batch; None after the last one.

        Raises:
            TimeoutError: the batch did not come in time.
            Exception: whatever ended the loading thread, the same object.
        """
        try:
            answer = get_awake(self.decoded, timeout_seconds)
        except Empty:
            OPEN.discard(self)  # nobody waits for a thread that hangs, and its ring is lost
            self.ending.set()
            self.free.put(None)
            self.ring.end()
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
        """End the pass and wait for it; no longer than the batch it is at. Whoever holds a slot gave it back.

        A collection closes a pass that was forgotten, in whatever thread it comes: one that decodes for the pass
        would wait for itself, and no other of ours has the time.
        """
        if self not in OPEN:
            return
        OPEN.discard(self)
        self.ending.set()
        self.free.put(None)
        if not threading.current_thread().name.startswith(OURS):
            self.ended.wait(CLOSE_SECONDS)
        if self.ended.is_set():
            self.rings.give_back(self.ring)
        else:
            self.ring.end()
            self.let_go()


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


def get_awake(queue: SimpleQueue[T], timeout_seconds: float) -> T:
    """Return what a queue gives within a time in which this process was awake.

    It waits in parts: a process that is suspended (SIGSTOP, `scontrol suspend`) loses one of them and not all.

    Raises:
        Empty: nothing came.
    """
    for _ in range(PARTS - 1):
        with contextlib.suppress(Empty):
            return queue.get(timeout=timeout_seconds / PARTS)
    return queue.get(timeout=timeout_seconds / PARTS)
