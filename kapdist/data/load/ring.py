"""Rings of buffers that decoders fill ahead, each with its thread, kept from one pass to the next.

Pinned memory is dear to get, and a thread that begins anew has cold caches and, under CUDA, a context to make.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

Work = Callable[[], None]


class Ring:
    """Memory of some slots, for each the event (CUDA) after which it may be written again, and who fills them."""

    def __init__(self, memory: Any, num_slots: int) -> None:
        self.memory = memory
        self.events: list[torch.cuda.Event | None] = [None] * num_slots
        self.work: SimpleQueue[Work | None] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def wait(self, slot: int) -> None:
        """Wait until the device has read what a slot held."""
        event, self.events[slot] = self.events[slot], None
        if event is not None:
            event.synchronize()

    def run(self, work: Work, name: str) -> None:
        """Let the ring's thread do something after what it is at."""
        if self.thread is None:
            self.thread = threading.Thread(target=serve, args=(self.work,), daemon=True, name=name)
            self.thread.start()
        self.work.put(work)

    def end(self) -> None:
        """Let the thread end after what it is at."""
        self.work.put(None)


def serve(queue: SimpleQueue[Work | None]) -> None:
    # A function, not a method, and nothing kept: a thread that held a pass would keep its loader.
    while (work := queue.get()) is not None:
        work()
        del work


class Rings:
    """As many rings as passes have been open at once; one that nobody has is taken before another is made.

    Without a lock, as single operations on a list need none: a pass that was forgotten is closed by a collection,
    which may come in the midst of any of these, and would wait for its own thread.
    """

    def __init__(self, make: Callable[[], Ring]) -> None:
        self.make = make
        self.closed = False
        self.idle: list[Ring] = []

    def take(self) -> Ring:
        try:
            return self.idle.pop()
        except IndexError:
            return self.make()

    def give_back(self, ring: Ring) -> None:
        self.idle.append(ring)
        if self.closed:
            self.close()

    def close(self) -> None:
        """Let the threads end: of idle rings now, of others when they come back."""
        self.closed = True
        with contextlib.suppress(IndexError):
            while True:
                self.idle.pop().end()
