"""Where decoders find the stored bytes of a pass: the file itself, mapped, or pages of it in own memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kapdist.data.beton.layout import Layout, stored_bytes


class Storage(Protocol):
    """The bytes of a pass. `trusted`: what was verified once stays as it was."""

    data: np.ndarray
    trusted: bool

    def starts(self, images: np.ndarray) -> np.ndarray:
        """Return where in data each image begins, int64."""

    def start_batch(self, batch: int) -> None:
        """Wait until the images of a batch are in data; batches are asked for in turn. FFCV's name."""

    def close(self) -> None:
        """Let go of threads; data may be gone afterwards."""


def tables_of(layout: Layout, images: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return sizes, heights, widths and modes of images, int64, as jitted code takes them."""
    tables = layout.sizes, layout.heights, layout.widths, layout.modes
    return tuple(table[images].astype(np.int64) for table in tables)


class MappedFile:
    """The whole file as a memory map: the operating system reads what is asked for and keeps what fits.

    Images that are in memory already are taken from there.
    """

    trusted = True

    def __init__(self, layout: Layout) -> None:
        # Anew for every pass: a file that shrank since must not be read beyond its end.
        self.layout = layout
        self.data = stored_bytes(layout.path) if layout.content is None else layout.content

    def starts(self, images: np.ndarray) -> np.ndarray:
        return self.layout.offsets[images]

    def start_batch(self, batch: int) -> None:
        return None

    def close(self) -> None:
        return None


class PagedFile:
    """The file's pages that batches need, read whole and ahead by FFCV's threads, dropped after their last batch.

    A page is what the writer filled at a time, and no image reaches over two. Memory is as many pages as are open
    at once, so it wants quasi-random order: in random order that is the whole file.
    """

    trusted = False  # a page is read again in every pass, and FFCV looks at no read's result

    def __init__(self, layout: Layout, batches: Sequence[np.ndarray]) -> None:
        from kapdist.data.load.ffcv import ScheduleExecutor, compute_schedule

        self.layout, self.page_bytes = layout, layout.page_bytes
        pages = [set((layout.offsets[batch] // self.page_bytes).tolist()) for batch in batches]
        schedule = compute_schedule(pages)
        memory = np.zeros((schedule.num_slots, self.page_bytes), np.uint8)
        self.slots = np.zeros(1 + max(schedule.page_to_slot, default=0), np.int64)
        for page, slot in schedule.page_to_slot.items():
            self.slots[page] = slot
        self.data = memory.reshape(-1)
        self.data.flags.writeable = False  # as the decoder's signature wants it; the threads write to `memory`
        self.executor = ScheduleExecutor(str(layout.path), schedule, memory, num_workers=READERS)
        self.executor.__enter__()

    def starts(self, images: np.ndarray) -> np.ndarray:
        page, within = np.divmod(self.layout.offsets[images], self.page_bytes)
        return self.slots[page] * self.page_bytes + within

    def start_batch(self, batch: int) -> None:
        self.executor.load_batch(batch)

    def close(self) -> None:
        self.executor.__exit__(None, None, None)


READERS = 4  # threads that read pages: enough to keep a network file system busy
