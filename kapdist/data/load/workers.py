"""Threads that decode: kept for a loader's life, never in the way of the process's end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

# Work is handed out in pieces, so that a thread with small images takes more of them.
PIECES_PER_WORKER = 4
SMALLEST_PIECE = 16

Part = Callable[[int, slice], None]


class Workers:
    """A few daemon threads that run the parts of one batch.

    libffcv keeps a JPEG decompressor per thread and never frees it: threads that come and go with every epoch
    leak one each. They are daemons, so that a thread that hangs in a read does not hold the process.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.lock, self.closed = threading.Lock(), False
        self.tasks: SimpleQueue[tuple[Part, slice, SimpleQueue[BaseException | None]] | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=work, args=(self.tasks, index), daemon=True, name=f"kapdist-decode-{index}")
            for index in range(num_workers)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, part: Part, length: int) -> None:
        """Call part(worker, slice) for slices that make up range(length); raise the first error of any."""
        pieces = max(1, min(PIECES_PER_WORKER * self.num_workers, length // SMALLEST_PIECE))
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        with self.lock:  # what is queued before the threads are told to end is still done
            if self.closed:
                raise RuntimeError("the loader of this pass is gone")
            for index in range(pieces):
                self.tasks.put((part, slice(index * length // pieces, (index + 1) * length // pieces), done))
        errors = [done.get() for _ in range(pieces)]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        with self.lock:
            self.closed = True
            for _ in self.threads:
                self.tasks.put(None)


def work(tasks: SimpleQueue[tuple[Part, slice, SimpleQueue[BaseException | None]] | None], index: int) -> None:
    # A function, not a method: a thread that held the Workers would keep them from being collected.
    while (task := tasks.get()) is not None:
        part, where, done = task
        try:
            part(index, where)
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del task, part, done
