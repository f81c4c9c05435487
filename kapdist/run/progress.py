"""How far a long piece of work is: a bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

WORTH_A_LINE_SECONDS = 1.0  # what is done sooner says nothing in a log


class RateColumn(ProgressColumn):
    """How many a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Progress:
    """Counts what is done, on standard error; `show` says how many and what else there is to say."""

    def __init__(self, title: str, total: int = 0, unit: str = "chunks", every_seconds: float = 10.0) -> None:
        self.title, self.total, self.unit, self.every_seconds = title, total, unit, every_seconds
        self.started, self.spoke, self.first = time.monotonic(), 0.0, -1
        self.done = -1
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(title, total=total, note="")

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    def show(self, done: int, note: str = "", total: int | None = None) -> None:
        self.total = self.total if total is None else total
        if self.first < 0:
            self.first = done  # what was done before we began says nothing about the rate
        if self.bar.live.is_started:
            self.bar.update(self.task, completed=done, total=self.total, note=note)
            return
        now = time.monotonic() - self.started
        finished = done == self.total and self.done != done
        self.done = done
        if now - self.spoke >= self.every_seconds or (finished and now > WORTH_A_LINE_SECONDS):
            self.spoke = now
            print(self.line(done, now, note), file=sys.stderr, flush=True)

    def line(self, done: int, seconds: float, note: str) -> str:
        """Return e.g. "attack: 3/8 chunks, 0.50/s, 10 s left, 12 robust so far"."""
        made = done - self.first
        rate = (
            f"{made / seconds:.2f}/s, {(self.total - done) * seconds / made:.0f} s left"
            if made
            else f"after {seconds:.0f} s"
        )
        return f"{self.title}: {done}/{self.total} {self.unit}, {rate}" + (f", {note}" if note else "")
