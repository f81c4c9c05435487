"""Where decoders find the stored bytes of a pass: the file itself, mapped, or pages of it in own memory."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from kapdist.data.beton.layout import Layout
from kapdist.errors import InputError, TransientError


class Storage(Protocol):
    """The bytes of a pass."""

    data: np.ndarray

    def starts(self, images: np.ndarray) -> np.ndarray:
        """Return where in data each image begins, int64."""

    def unverified(self, images: np.ndarray) -> np.ndarray:
        """Return of which images the checksums are still to be compared, bool."""

    def note(self, images: np.ndarray) -> None:
        """Note that images are as they were written."""

    def start_batch(self, batch: int) -> None:
        """Wait until the images of a batch are in data; batches are asked for in turn. FFCV's name."""

    def close(self) -> None:
        """Let go of threads; data may be gone afterwards."""


def tables_of(layout: Layout, images: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return sizes, heights, widths and modes of images, int64, as jitted code takes them."""
    tables = layout.sizes, layout.heights, layout.widths, layout.modes
    return tuple(table[images].astype(np.int64) for table in tables)


class StoredFile:
    """A beton's file as it was when a loader was made, and which of its images were found as they were written.

    It is kept open: another file in its place, or none, changes nothing for whoever is at work. Where somebody
    writes into the file itself, nothing of it counts as verified any more. Images that are in memory already are
    taken from there.

    Raises:
        InputError: there is no file.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.lock = layout, threading.Lock()
        self.verified = np.zeros(len(layout.offsets), np.bool_)
        self.written: tuple[int, int] | None = None  # bytes and time of the last look
        if layout.content is None:
            try:
                self.descriptor = os.open(layout.path, os.O_RDONLY)
            except FileNotFoundError:
                raise InputError(layout.path, "a beton (kapdist data write)", "no file") from None
            weakref.finalize(self, os.close, self.descriptor)

    def look(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the file's bytes, read-only (bytes,) uint8, and what is known of its images, bool, to be noted in.

        Mapped anew at every call: a file that shrank since must not be read beyond its end.
        """
        if self.layout.content is not None:
            return self.layout.content, self.verified
        found = os.fstat(self.descriptor)
        with self.lock:
            if self.written != (found.st_size, found.st_mtime_ns):
                self.written = found.st_size, found.st_mtime_ns
                self.verified = np.zeros_like(self.verified)
            verified = self.verified
        mapped = mmap.mmap(self.descriptor, found.st_size, access=mmap.ACCESS_READ) if found.st_size else b""
        return np.frombuffer(mapped, np.uint8), verified


class MappedFile:
    """The whole file as a memory map: the operating system reads what is asked for and keeps what fits."""

    def __init__(self, file: StoredFile) -> None:
        self.layout = file.layout
        self.data, self.verified = file.look()

    def starts(self, images: np.ndarray) -> np.ndarray:
        return self.layout.offsets[images]

    def unverified(self, images: np.ndarray) -> np.ndarray:
        return ~self.verified[images]

    def note(self, images: np.ndarray) -> None:
        self.verified[images] = True

    def start_batch(self, batch: int) -> None:
        return None

    def close(self) -> None:
        return None


class PagedFile:
    """The file's pages that batches need, read whole and ahead by threads, dropped after their last batch.

    A page is what the writer filled at a time, and no image reaches over two. Memory is as many pages as are open
    at once, so it wants quasi-random order: in random order that is the whole file.

    FFCV's schedule, and readers of our own: FFCV's open the file by its name, each when it comes to it, look at no
    read's result, and are waited for when they are gone.

    Raises (from start_batch):
        TransientError: a page of the batch cannot be read.
    """

    def __init__(self, file: StoredFile, batches: Sequence[np.ndarray]) -> None:
        from kapdist.data.load.ffcv import compute_schedule

        self.file, self.layout = file, file.layout
        self.page_bytes = self.layout.page_bytes
        pages = [set((self.layout.offsets[batch] // self.page_bytes).tolist()) for batch in batches]
        self.schedule = compute_schedule(pages)
        self.memory = np.zeros((self.schedule.num_slots, self.page_bytes), np.uint8)
        self.slots = np.zeros(1 + max(self.schedule.page_to_slot, default=0), np.int64)
        for page, slot in self.schedule.page_to_slot.items():
            self.slots[page] = slot
        self.data = self.memory.reshape(-1)
        self.data.flags.writeable = False  # as the decoder's signature wants it; the threads write to `memory`
        self.asked: dict[int, Future[None]] = {}  # by page
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.closed = False
        for _ in range(READERS):  # daemons: one that hangs in a read does not hold the process
            threading.Thread(target=self.serve, daemon=True, name="kapdist-page").start()

    def starts(self, images: np.ndarray) -> np.ndarray:
        page, within = np.divmod(self.layout.offsets[images], self.page_bytes)
        return self.slots[page] * self.page_bytes + within

    def unverified(self, images: np.ndarray) -> np.ndarray:
        return np.ones(len(images), np.bool_)  # a page is read again in every pass

    def note(self, images: np.ndarray) -> None:
        return None

    def start_batch(self, batch: int) -> None:
        for page in self.schedule.can_prefetch_at[batch]:
            self.asked[page] = Future()
            self.queue.put(page)
        if self.closed:  # meanwhile, by who gave this thread up: nobody reads any more
            self.cancel()
        for page in self.schedule.entering_at[batch]:
            self.asked[page].result()

    def serve(self) -> None:
        """Read what is asked for until the end: a thread's work, with the file kept open as long as it takes."""
        while (page := self.queue.get()) is not None:
            asked = self.asked[page]
            if not asked.set_running_or_notify_cancel():
                continue
            try:
                self.read(page)
            except Exception as error:
                asked.set_exception(error)
            else:
                asked.set_result(None)

    def read(self, page: int) -> None:
        """Fill a page's slot; where the file has no bytes for it, it stays as it was, and no checksum agrees."""
        left, offset = memoryview(self.memory[self.slots[page]]), page * self.page_bytes
        try:
            while count := os.preadv(self.file.descriptor, [left], offset):
                left, offset = left[count:], offset + count
        except OSError as error:
            raise TransientError(f"{self.layout.path}: {error.strerror} at byte {offset}") from error

    def close(self) -> None:
        self.closed = True
        self.cancel()
        for _ in range(READERS):
            self.queue.put(None)

    def cancel(self) -> None:
        for asked in list(self.asked.values()):
            asked.cancel()


READERS = 4  # threads that read pages: enough to keep a network file system busy
