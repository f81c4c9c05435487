"""Writing a beton: FFCV's format and encoder, with workers that are watched."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from queue import Empty
from typing import Any

import cv2
import numpy as np

from kapdist.data.errors import UnreadableImageError, WriterError
from kapdist.data.guard import (
    DatasetWriter,
    IntField,
    MemoryAllocator,
    RGBImageField,
    chunks,
    worker_job_indexed_dataset,
)
from kapdist.data.sources import Source

SMALLEST_PAGE, LARGEST_PAGE = 1 << 21, 1 << 25  # bytes; no stored image can be larger than its page
MAX_SIDE = 65535  # the file format's, and JPEG's
PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.05
NOTE_CHARACTERS = 500  # short enough for a pipe to take a note whole, even from a worker that is killed

Progress = Callable[[int, int], None]
# FFCV's workers share queues, counters and memory by being forked.
fork = multiprocessing.get_context("fork")


class Samples:
    """A source as FFCV's workers index it; notes which image each worker is at and what went wrong."""

    def __init__(self, source: Source, num_workers: int, max_side: int | None) -> None:
        self.source, self.max_side = source, max_side
        self.slot = 0
        self.at = RawArray("q", [-1] * num_workers)
        self.notes: Any = fork.SimpleQueue()

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.at[self.slot] = index
        try:
            image, label = self.source.item(index)
            refuse_too_large(image, self.max_side)
            return image, label
        except UnreadableImageError as error:
            # Not the end of the worker: all unreadable images are reported together.
            self.notes.put(("unreadable", int(index), str(error)[:NOTE_CHARACTERS]))
            return np.zeros((1, 1, 3), np.uint8), 0

    def name_at(self, slot: int) -> str:
        index = self.at[slot]
        return "before its first image" if index < 0 else f"at {self.source.image_name(index)} (image {index})"


def refuse_too_large(image: np.ndarray, max_side: int | None) -> None:
    height, width = image.shape[:2]
    shrink = min(1.0, (max_side or MAX_SIDE) / max(height, width))
    if max(height, width) * shrink > MAX_SIDE or image.nbytes * shrink**2 > LARGEST_PAGE:
        raise UnreadableImageError(f"{height} x {width} pixels are more than a beton can hold; use a maximum side")


def work(slot: int, samples: Samples, arguments: tuple[Any, ...]) -> None:
    samples.slot = slot
    die_with_parent()
    cv2.setNumThreads(1)  # a process per CPU is enough, and OpenCV's threads do not survive a fork
    try:
        worker_job_indexed_dataset(*arguments, samples)
    except BaseException:
        samples.notes.put(
            ("error", slot, traceback.format_exc(limit=-1).strip().splitlines()[-1][:NOTE_CHARACTERS])
        )
        raise SystemExit(1) from None


def die_with_parent() -> None:
    """Let the kernel end this process when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent.pid:
        raise SystemExit(1)  # the parent was faster


class WatchedWriter(DatasetWriter):
    """FFCV's writer; where FFCV waits for a dead worker for ever, this one raises WriterError."""

    def write(
        self,
        samples: Samples,
        indices: Sequence[int],
        progress: Progress | None = None,
        timeout_seconds: float = 600.0,
    ) -> dict[int, str]:
        """Write the images of `indices`; return {index: reason} of those that could not be read."""
        self.num_samples = len(indices)
        self.prepare()
        watch = Watch(samples, len(indices), progress, timeout_seconds)
        todo, allocations, done = fork.Queue(), fork.Queue(), fork.Value("Q", 0)
        try:
            for chunk in chunks(list(enumerate(indices)), max(1, min(100, len(indices) // (8 * self.num_workers)))):
                todo.put(chunk)
            for _ in range(self.num_workers):
                todo.put(None)
            allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
            shared = (todo, self.metadata_sm, self.metadata_type, self.fields, allocator, done, allocations)
            watch.start([fork.Process(target=work, args=(n, samples, shared)) for n in range(self.num_workers)])
            self.finalize(watch.collect(allocations, done))
        finally:
            watch.end()
            for queue in (todo, allocations):
                queue.cancel_join_thread()
                queue.close()
            self.metadata_sm.close()
            self.metadata_sm.unlink()
        return watch.unreadable


class Watch:
    """Waits for the workers, and notices when one of them cannot end."""

    def __init__(self, samples: Samples, total: int, progress: Progress | None, timeout_seconds: float) -> None:
        self.samples, self.total, self.progress = samples, total, progress
        self.timeout_seconds = timeout_seconds
        self.unreadable: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.processes: list[ForkProcess] = []
        self.seen: tuple[list[int], int] = ([], 0)
        self.moved = time.monotonic()

    def start(self, processes: list[ForkProcess]) -> None:
        self.processes = processes
        for process in processes:
            process.start()

    def collect(self, allocations: Any, done: Any) -> list[tuple[int, int, int]]:
        """Return where the workers put the images, once all of them have said so."""
        collected: list[tuple[int, int, int]] = []
        answers = 0
        while answers < len(self.processes):
            self.look(int(done.value))
            try:
                collected += allocations.get(timeout=POLL_SECONDS)
                answers += 1
            except Empty:
                pass
        self.look(int(done.value))
        return collected

    def look(self, done: int) -> None:
        while not self.samples.notes.empty():
            kind, index, text = self.samples.notes.get()
            (self.unreadable if kind == "unreadable" else self.errors)[index] = text
        for slot, process in enumerate(self.processes):
            if process.exitcode not in (None, 0):
                reason = self.errors.get(slot) or f"exit code {process.exitcode}"
                raise WriterError(f"a writer worker died {self.samples.name_at(slot)}: {reason}")
        state = (list(self.samples.at), done)
        if state != self.seen:
            self.seen, self.moved = state, time.monotonic()
            if self.progress:
                self.progress(done, self.total)
        elif time.monotonic() - self.moved > self.timeout_seconds:
            places = "; ".join(self.samples.name_at(slot) for slot in range(len(self.processes)))
            raise WriterError(f"no writer worker moved for {self.timeout_seconds:g} s: {places}")

    def end(self) -> None:
        """End the workers: they have answered, or they never will."""
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()


def page_size(source: Source, max_side: int | None) -> int:
    """Return the smallest page that holds any image of the source: pages are written full or not."""
    bounds = [bound for bound in (source.largest_bytes, max_side and 3 * max_side**2) if bound]
    bound = min(bounds, default=LARGEST_PAGE)
    return min(LARGEST_PAGE, max(SMALLEST_PAGE, 1 << (bound - 1).bit_length()))


def write_images(
    source: Source,
    path: Path,
    indices: Sequence[int],
    *,
    max_side: int | None,
    jpeg_quality: int | None,
    num_workers: int,
    timeout_seconds: float,
    progress: Progress | None,
) -> dict[int, str]:
    """Write the images of `indices` to an FFCV file; return {index: reason} of those that could not be read."""
    mode = "raw" if jpeg_quality is None else "jpg"
    image = RGBImageField(write_mode=mode, max_resolution=max_side, jpeg_quality=jpeg_quality or 90)
    num_workers = min(num_workers, len(indices))
    writer = WatchedWriter(
        str(path),
        {"image": image, "label": IntField()},
        page_size=page_size(source, max_side),
        num_workers=num_workers,
    )
    return writer.write(Samples(source, num_workers, max_side), indices, progress, timeout_seconds)
