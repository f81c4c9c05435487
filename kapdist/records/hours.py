"""What a training took, from what its attempts left: hours of one process (rank) each, and what of them was lost.

What an attempt did beyond the step that the next one resumed at was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kapdist.records.metrics import read_metrics
from kapdist.run.files import mapping_in
from kapdist.run.paths import RunDir


@dataclass(frozen=True)
class Attempt:
    """One start of a training: rank 0's steps, the seconds of all ranks."""

    first: int
    """0 where it made no progress."""
    last: int
    seconds: float


def training_hours(run: RunDir, going_on: bool) -> tuple[float, float]:
    """Return the hours of all attempts, and those that were lost among them.

    Args:
        going_on: what the last attempt did beyond its last checkpoint is not lost: it is done, or at work.
    """
    folders = [folder for folder in run.attempts.glob("*") if folder.name.isdigit()]
    attempts = [attempt(folder) for folder in sorted(folders, key=lambda path: int(path.name))]
    if run.done.exists() and not sum(one.seconds for one in attempts):  # of a version that wrote no more
        return (read_metrics(run.metrics).end or {}).get("seconds", 0.0) / 3600, 0.0
    used, lost = used_and_lost(attempts, reached(run, attempts, going_on))
    return used / 3600, lost / 3600


def reached(run: RunDir, attempts: Sequence[Attempt], going_on: bool) -> int:
    """Return the step that is reached for good; the last attempt may have taken none, as of a run that is done."""
    if going_on and run.done.exists():
        return next((one.last for one in reversed(attempts) if one.first), 0)
    at_work = going_on and attempts and attempts[-1].first
    return attempts[-1].last if at_work else run.newest_step()


def used_and_lost(attempts: Sequence[Attempt], end: int) -> tuple[float, float]:
    """Return the seconds of all attempts, and those whose steps were not gone on from.

    Args:
        end: the step that is reached for good: the last one's, or that of the newest checkpoint.
    """
    resumed = [one.first or None for one in attempts[1:]] + [end]
    lost = 0.0
    for number, one in enumerate(attempts):
        until = next((step for step in resumed[number:] if step is not None), end)
        steps = one.last - one.first
        kept = min(max(until - one.first, 0), steps) / steps if one.first and steps > 0 else 0.0
        lost += one.seconds * (1 - kept)
    return sum(one.seconds for one in attempts), lost


def attempt(folder: Path) -> Attempt:
    # One may be on its way to be renewed, or was when the disk was full.
    beats = [found for path in sorted(folder.glob("heartbeat-*.json")) if (found := mapping_in(path))]
    first = beats[0] if beats else {}
    seconds = sum(beat.get("seconds", 0.0) for beat in beats)
    return Attempt(int(first.get("first_step", 0)), int(first.get("step", 0)), seconds)
