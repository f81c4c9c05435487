"""`python -m kapdist.tracking NAME RUN [PAGE]...`: tells one tracker of a run while its starter is at work.

Standard input brings one word at the end, or just ends if that process died; standard output takes lines of a
logging level and a text. Exit codes: 0 all is told; 1 it is not, and the reason was said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kapdist.errors import first_line, one_line
from kapdist.records.tracked import read_tracked, write_tracked
from kapdist.run.asked import ASK
from kapdist.run.lock import locked_in_turn
from kapdist.run.paths import RunDir
from kapdist.tracking.sender import remedy
from kapdist.tracking.told import results_of, settled_rows
from kapdist.tracking.trackers import TRACKERS, Tracker

LOOK_SECONDS = 5.0  # between two looks for a new checkpoint
AGAIN_SECONDS = 60.0  # before a tracker that failed is tried again

Say = Callable[[int, str], None]


class Starter(Protocol):
    """The process that started this one."""

    def over(self, seconds: float) -> str | None:
        """Return how its work ended, None where it has not within so many seconds."""


class Pipe:
    """The starter at the other end of standard input; after its end this process has `seconds` left."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.how, self.ended = seconds, "stopped", threading.Event()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        self.how = sys.stdin.readline().strip() or self.how
        self.ended.set()
        time.sleep(self.seconds)
        os.killpg(0, signal.SIGKILL)  # a session of its own: whatever the tracker waits for ends with it

    def over(self, seconds: float) -> str | None:
        return self.how if self.ended.wait(seconds) else None


class Telling:
    """One tracker that is told of one run: from the beginning of what it lacks, and again after an error."""

    def __init__(
        self, run: RunDir, name: str, pages: Sequence[Path], say: Say, stack: contextlib.ExitStack
    ) -> None:
        self.run, self.name, self.pages, self.say, self.stack = run, name, pages, say, stack
        self.tracker: Tracker | None = None
        self.address, self.locked, self.failed = "", False, False

    def attempt(self, how: str | None) -> bool:
        """Tell what can be told; at the end all. An error is said once, until there is none."""
        try:
            self.tell(how)
        except Exception as error:  # of any library, of the network, of the disk
            self.tracker = None
            if not self.failed:
                self.say(logging.WARNING, one_line(f"{first_line(error)}; {remedy(self.run)}"))
            self.failed = True
            return False
        if self.failed:
            self.say(logging.INFO, "reached again")
        self.failed = False
        return True

    def tell(self, how: str | None) -> None:
        tracker = self.tracker = self.tracker or self.opened()
        if rows := settled_rows(self.run):
            path = self.run.tracked(self.name)
            write_tracked(path, read_tracked(path).model_copy(update={"step": rows[-1].step}))
            tracker.log(rows)
        if how is not None:
            tracker.keep(results_of(self.run, self.pages))
            tracker.end(how)

    def opened(self) -> Tracker:
        path = self.run.tracked(self.name)
        tracked = read_tracked(path)
        if not self.locked:  # by the process of an attempt that was just stopped
            self.stack.enter_context(locked_in_turn(path.with_suffix(".lock"), tracked.seconds))
            self.locked = True
        tracker = TRACKERS[self.name].open(self.run, tracked)
        if tracker.address != self.address:
            self.address = tracker.address
            self.say(logging.INFO, self.address)
        return tracker


def serve(run: RunDir, name: str, starter: Starter, say: Say, pages: Sequence[Path] = ()) -> bool:
    """Tell a tracker of a run until the starter's work is over; return whether it was told all."""
    with contextlib.ExitStack() as stack:
        telling, how, seen = Telling(run, name, pages, say, stack), starter.over(0), -1
        while how is None:
            newest = run.newest_step()
            good = telling.attempt(None) if newest != seen else True
            seen = newest if good else -1
            how = starter.over(LOOK_SECONDS if good else AGAIN_SECONDS)
        return telling.attempt(how)


def main(name: str, root: str, *pages: str) -> int:
    for number in (*ASK, signal.SIGINT):  # the starter is asked, and says when it is over
        signal.signal(number, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print

    def say(level: int, text: str) -> None:
        with contextlib.suppress(OSError):
            print(level, text, file=told)

    run = RunDir(Path(root))
    seconds = read_tracked(run.tracked(name)).seconds
    return int(not serve(run, name, Pipe(seconds), say, [Path(page) for page in pages]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
