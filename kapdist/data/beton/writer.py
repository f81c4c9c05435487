"""Processes that encode images and put them in their places, and somebody who watches them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kapdist.data.beton.board import WRITTEN, Board, fork
from kapdist.data.beton.checksum import checksums
from kapdist.data.beton.container import place
from kapdist.data.beton.encode import Encoding, Stored, encode
from kapdist.data.sources.base import Source
from kapdist.data.sources.image import UnreadableImageError
from kapdist.errors import InputError
from kapdist.run.files import NO_ROOM

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS, TURN_SECONDS = 0.05, 0.001
NOTE_CHARACTERS = 500  # short enough for a pipe to take a note whole, even from a worker that is killed
PARTS_IN_MEMORY = 3  # of a worker whose predecessors are slower

Progress = Callable[[int, int], None]


class WriterError(RuntimeError):
    """A writing worker ended, or stopped, before its work was done; the message names the image it was at."""


@dataclass(frozen=True)
class Job:
    """What the workers of a file do."""

    source: Source
    encoding: Encoding
    board: Board
    path: Path
    start: int
    """Where the first page begins, bytes."""
    notes: Any
    """What went wrong, for the one who watches."""

    def name_at(self, slot: int) -> str:
        index = int(self.board.at[slot])
        return "before its first image" if index < 0 else f"at {self.source.image_name(index)} (image {index})"


class Worker:
    """One process: takes part after part, encodes it, and writes it when its place is known."""

    def __init__(self, job: Job, slot: int) -> None:
        self.job, self.slot, self.board = job, slot, job.board
        self.descriptor = os.open(job.path, os.O_WRONLY)

    def run(self) -> None:
        waiting: list[tuple[int, np.ndarray]] = []
        while (part := self.board.take()) is not None:
            waiting.append((part, self.encode_part(part)))
            self.board.encoded(part)
            while waiting and (len(waiting) >= PARTS_IN_MEMORY or self.placed(waiting[0][0])):
                self.put(*waiting.pop(0))
        for part, content in waiting:
            self.put(part, content)

    def encode_part(self, part: int) -> np.ndarray:
        """Return the bytes of a part's images, one behind the other."""
        content = np.frombuffer(b"".join(self.encode(index) for index in self.board.images(part)), np.uint8)
        content.setflags(write=False)  # already so, unless there is nothing in it
        records = self.board.part_records(part)
        # All at once: for small images the call costs more than the sum.
        records["checksum"] = checksums(content, ends_before(records["size"]), records["size"])
        return content

    def encode(self, index: int) -> Any:
        """Note what is known of an image and return its bytes; none of one that cannot be read."""
        board, job = self.board, self.job
        board.at[self.slot] = index
        try:
            stored = encode(job.source, index, job.encoding, board.page_size)
        except UnreadableImageError as error:
            # Not the end of the worker: all unreadable images are reported together.
            job.notes.put(("unreadable", index, str(error)[:NOTE_CHARACTERS]))
            board.records[index] = 0
            content: Any = b""
        else:
            content = stored.content
            board.records[index] = record_of(stored)
        board.done[self.slot] += 1
        return content

    def placed(self, part: int) -> bool:
        return bool(self.board.begins[part] >= 0)

    def put(self, part: int, content: np.ndarray) -> None:
        while not self.placed(part):
            time.sleep(TURN_SECONDS)
        sizes = self.board.part_records(part)["size"]
        begins, _ = place(int(self.board.begins[part]), sizes, self.board.page_size)
        # Only a page's border lies between images: what is together in the file is written together.
        gaps = begins - ends_before(sizes)
        for gap in np.unique(gaps):
            images = np.flatnonzero(gaps == gap)
            first, last = int(begins[images[0]]), int(begins[images[-1]] + sizes[images[-1]])
            write_at(self.descriptor, content[first - gap : last - gap], self.job.start + first)
        self.board.states[part] = WRITTEN


def ends_before(sizes: np.ndarray) -> np.ndarray:
    """Return where each of some things begins that lie one behind the other."""
    return np.cumsum(sizes) - sizes


def record_of(stored: Stored) -> tuple[int, ...]:
    """Return a RECORD; the checksum comes later."""
    return stored.label, len(stored.content), 0, stored.height, stored.width, stored.mode, stored.kept


def write_at(descriptor: int, content: np.ndarray, offset: int) -> None:
    left = content.data
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


def work(job: Job, slot: int) -> None:
    die_with_parent()
    cv2.setNumThreads(1)  # a process per CPU is enough, and OpenCV's threads do not survive a fork
    warnings.simplefilter("ignore")  # Pillow's remarks on images that it reads all the same
    try:
        Worker(job, slot).run()
    except BaseException as error:
        kind = "room" if isinstance(error, OSError) and error.errno in NO_ROOM else "error"
        reason = traceback.format_exc(limit=-1).strip().splitlines()[-1]
        job.notes.put((kind, slot, reason[:NOTE_CHARACTERS]))
        raise SystemExit(1) from None


def die_with_parent() -> None:
    """Let the kernel end this process when its parent is killed."""
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent.pid:
        raise SystemExit(1)  # the parent was faster


class Watch:
    """Waits for the workers, and notices when one of them cannot end."""

    def __init__(self, job: Job, timeout_seconds: float) -> None:
        self.job, self.timeout_seconds = job, timeout_seconds
        self.unreadable: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.processes: list[ForkProcess] = []
        self.seen: tuple[list[int], int] = ([], 0)
        self.moved = time.monotonic()

    def run(self, poll: Callable[[], None]) -> None:
        """Let the workers write every part that is open; call `poll` again and again until they have.

        Raises:
            WriterError: a worker died, or none of them moved; names the image.
            InputError: the disk is full.
        """
        self.processes = [
            fork.Process(target=work, args=(self.job, slot)) for slot in range(self.job.board.num_workers)
        ]
        try:
            for process in self.processes:
                process.start()
            while running := [process.sentinel for process in self.processes if process.exitcode is None]:
                self.look()
                poll()
                wait(running, POLL_SECONDS)
            self.look()
            poll()
        finally:
            self.end()

    def look(self) -> None:
        while not self.job.notes.empty():
            kind, index, text = self.job.notes.get()
            if kind == "room":
                raise InputError(self.job.path, "room on its disk", text)
            (self.unreadable if kind == "unreadable" else self.errors)[index] = text
        for slot, process in enumerate(self.processes):
            if process.exitcode not in (None, 0):
                reason = self.errors.get(slot) or f"exit code {process.exitcode}"
                raise WriterError(f"a writer worker died {self.job.name_at(slot)}: {reason}")
        state = (self.job.board.at.tolist(), int(np.count_nonzero(self.job.board.states == WRITTEN)))
        if state != self.seen:
            self.seen, self.moved = state, time.monotonic()
        elif time.monotonic() - self.moved > self.timeout_seconds:
            places = "; ".join(self.job.name_at(slot) for slot in range(self.job.board.num_workers))
            raise WriterError(f"no writer worker moved for {self.timeout_seconds:g} s: {places}")

    def end(self) -> None:
        """End the workers: they are done, or they never will be."""
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()
