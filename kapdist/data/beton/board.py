"""What the processes of a writer know together: memory that they share by being forked."""

from __future__ import annotations

import mmap
import multiprocessing
from typing import Any

import numpy as np

from kapdist.data.beton.container import RECORD, place

# Workers share counters and memory by being forked.
fork = multiprocessing.get_context("fork")
OPEN, ENCODED, WRITTEN = 0, 1, 2


def shared(dtype: Any, count: int) -> np.ndarray:
    """Return zeros in memory that forked processes see each other write."""
    return np.frombuffer(mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize)), dtype, count)


class Board:
    """Parts of the source, their states, and where in the file they go.

    A part is a run of images that one worker encodes. Where it goes depends on the sizes of all before it and on
    nothing else, so any number of workers writes the same file.
    """

    def __init__(self, num_images: int, part_images: int, page_size: int) -> None:
        self.num_images, self.part_images, self.page_size = num_images, part_images, page_size
        self.num_parts = -(-num_images // part_images)
        self.records = shared(RECORD, num_images)
        self.states = shared("u1", self.num_parts)
        self.begins = shared("i8", self.num_parts + 1)  # of parts, from the first page; -1 while unknown
        self.begins[1:] = -1
        self.begin(0)

    def begin(self, num_workers: int) -> None:
        """Get ready for workers that take every part that is open."""
        self.num_workers = num_workers
        self.at = shared("i8", num_workers)  # which image each worker is at
        self.at[:] = -1
        self.done = shared("i8", num_workers)  # images
        self.next, self.lock = fork.Value("q", 0), fork.Lock()

    def images(self, part: int) -> range:
        return range(part * self.part_images, min((part + 1) * self.part_images, self.num_images))

    def part_records(self, part: int) -> np.ndarray:
        images = self.images(part)
        return self.records[images.start : images.stop]

    def take(self) -> int | None:
        """Return a part that nobody has begun, the first one first."""
        with self.next.get_lock():
            while self.next.value < self.num_parts:
                part = int(self.next.value)
                self.next.value += 1
                if self.states[part] == OPEN:
                    return part
        return None

    def encoded(self, part: int) -> None:
        """Note that the sizes of a part's images are known, and place all parts that can now be placed."""
        with self.lock:
            self.states[part] = ENCODED
            self.advance()

    def advance(self) -> None:
        front = int(np.argmax(self.begins < 0)) - 1 if (self.begins < 0).any() else self.num_parts
        while front < self.num_parts and self.states[front] != OPEN:
            _, self.begins[front + 1] = place(
                int(self.begins[front]), self.part_records(front)["size"], self.page_size
            )
            front += 1
