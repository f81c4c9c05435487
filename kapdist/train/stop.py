"""Being asked to stop: signals set a flag, the ranks agree at a step boundary, all save, everyone leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from kapdist.engine import Answer, Ranks
from kapdist.errors import StoppedError
from kapdist.run.asked import ASK, EARLY, heard

# One Ctrl-C in a terminal comes twice under torchrun: from the terminal and from torchrun.
SAME_SECONDS = 1.0


class Stop:
    """Listens for the signals of its process while it is entered."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.asked_by, self.asked_at = "", 0.0
        self.answer: Answer | None = None
        self.pid = os.getpid()
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in heard(*ASK, signal.SIGINT)}
            for number in EARLY:
                self.ask(number, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.answer is not None and (kind is None or issubclass(kind, StoppedError)):
            self.answer.wait()  # all ranks have begun it; after an error of one the others may not

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C leaves at once."""
        if os.getpid() != self.pid:
            return  # a forked worker has this handler too, and no say
        again = time.monotonic() - self.asked_at > SAME_SECONDS
        if number == signal.SIGINT and self.asked_by == "SIGINT" and again:
            raise KeyboardInterrupt
        self.asked_by, self.asked_at = signal.Signals(number).name, time.monotonic()

    def agreed(self) -> bool:
        """Return whether any rank had been asked by the call before; every rank calls this at the same step.

        A step begins the question that the next one reads, so that no rank waits here for the slowest.
        """
        if self.ranks.world_size == 1:
            return bool(self.asked_by)
        before, self.answer = self.answer, self.ranks.start_any(bool(self.asked_by))
        return before is not None and before.wait()

    def leave_if_early(self) -> None:
        """Leave, all ranks together, if one was asked before they had met: there is nothing to save."""
        if self.ranks.any(bool(self.asked_by)):
            raise StoppedError(f"stopped by {self.asked_by or 'another rank'} before it began; may be continued")

    def leave(self, step: int, saved: int) -> None:
        """Leave after all ranks have saved; `saved` is the step that was saved last, below 0 where none was."""
        last = f"step {saved} was saved last" if saved >= 0 else "no step was saved by this attempt"
        what = "saved" if saved == step else f"there was no room to save it, {last}"
        raise StoppedError(
            f"stopped at step {step} by {self.asked_by or 'another rank'}; {what}, and may be continued"
        )
