"""Whether a job that ended is started again: with progress always, after failures without it a few times. Pure."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kapdist.errors import RESUME
from kapdist.run.files import append_line, lines_in
from launch.cluster import ClusterConfig

Verdict = Literal["done", "again", "give up", "leave"]
"""To leave is to end without a word in FAILED: somebody else is at work there."""

STOPPED = 0  # what ranks leave with that were told to stop, and saved
WRONG_INPUT = 2
HELD = RESUME  # of a start that found somebody else at work: "try again"


@dataclass(frozen=True)
class End:
    """How one start of a job ended."""

    code: int
    """Largest exit code of the ranks, as srun gives it."""
    progress: int
    """Step of the newest checkpoint, or number of finished chunks."""
    job: str | None = None
    reason: str = ""
    time: float = 0.0

    @property
    def failed(self) -> bool:
        return self.code != STOPPED


def verdict(ends: list[End], done: bool, cluster: ClusterConfig) -> tuple[Verdict, str]:
    """Decide what follows the last of a job's ends, and say why."""
    last = ends[-1]
    if done:
        return "done", "done"
    if last.code == HELD:
        return verdict_where_held(ends, cluster)
    if last.code == WRONG_INPUT:
        return "give up", "wrong input, which no restart mends"
    idle = idle_ends(ends)
    failures = sum(end.failed for end in idle)
    if last.failed and failures >= cluster.max_failures:
        return "give up", f"{failures} failures in a row without progress (max_failures)"
    if len(idle) > cluster.max_idle_restarts:
        return "give up", f"{len(idle)} restarts in a row without progress (max_idle_restarts)"
    word = f"failed with exit code {last.code}" if last.failed else "was stopped"
    return "again", f"{word} at {last.progress}; starts again"


def verdict_where_held(ends: list[End], cluster: ClusterConfig) -> tuple[Verdict, str]:
    """Try a few times, since the other may be about to end, or Slurm silent about it; the run is never given up."""
    last = ends[-1]
    tries = len(list(itertools.takewhile(lambda end: (end.code, end.job) == (HELD, last.job), reversed(ends))))
    if tries >= cluster.max_failures:
        return "leave", f"left to who is at work there ({tries} tries, max_failures): {last.reason}"
    return "again", f"somebody else is at work there, starts again: {last.reason}"


def idle_ends(ends: list[End]) -> list[End]:
    """Return the ends since progress was last made: those at the newest progress but the one that made it.

    Starts that found somebody else at work had no part in it.

    The first end of a job has made progress if it is past 0.
    """
    newest = ends[-1].progress
    ends = [end for end in ends if end.code != HELD]
    same = [end for end in ends if end.progress == newest]
    made_it = newest > 0
    return same[1:] if made_it else same


class Restarts:
    """The ends of the starts of one job, a line each in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[End]:
        return [End(**line) for line in lines_in(self.path)]

    def add(self, end: End) -> list[End]:
        """Append an end and return all of them.

        Raises:
            OSError: a failure cannot be noted, as where a disk is full: uncounted, it would be tried for ever.
        """
        try:
            append_line(self.path, asdict(end) | {"time": time.time()})
        except OSError:
            if end.failed:
                raise
            return [*self.read(), end]
        return self.read()

    def forget(self) -> None:
        """Start counting anew: a submission by hand."""
        self.path.unlink(missing_ok=True)
