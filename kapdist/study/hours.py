"""What a study has taken so far, what of it was for nothing, what is left; hours of one process (rank) each.

Read without what tables and pictures need, so that a look at it is quick. A training's hours are those of all its
attempts; what an attempt did beyond the step that the next one resumed at was lost. Of all else, which is done in
units that stay, the hours of what is done count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kapdist.records.metrics import read_metrics
from kapdist.records.sealed import read_json
from kapdist.run.files import mapping_in
from kapdist.run.paths import RunDir
from kapdist.study.design import Design
from kapdist.study.tasks import TRAINING, Task

Kind = tuple[str, str]
"""Of commands that take about as long: what is done, and with which attack."""


@dataclass(frozen=True)
class Hours:
    """Hours of one process each."""

    used: float = 0.0
    """Those that were lost among them."""
    lost: float = 0.0
    left: float = 0.0
    more: bool = False
    """There are commands left of which nothing tells how long they take."""

    def __add__(self, other: Hours) -> Hours:
        more = self.more or other.more
        return Hours(self.used + other.used, self.lost + other.lost, self.left + other.left, more)


@dataclass(frozen=True)
class Attempt:
    """One start of a training: rank 0's steps, the seconds of all ranks."""

    first: int
    """0 where it made no progress."""
    last: int
    seconds: float


def hours_of_tasks(design: Design, every: Sequence[Task]) -> Mapping[str, Hours]:
    """Return {task: hours}; what is left of one is what those of its kind took on average, its setting's before."""
    spent = {task.name: spent_on(task) for task in every}
    known: dict[tuple[Kind, str], list[float]] = {}
    for task in every:
        if task.done and spent[task.name].used:
            useful = spent[task.name].used - spent[task.name].lost
            for setting in (task.run.setting.name, ""):
                known.setdefault((kind_of(task), setting), []).append(useful)
    expected = {key: fmean(values) for key, values in known.items()}
    return {task.name: spent[task.name] + left(design, task, expected) for task in every}


def kind_of(task: Task) -> Kind:
    return task.kind, task.attack


def left(design: Design, task: Task, expected: Mapping[tuple[Kind, str], float]) -> Hours:
    if task.done:
        return Hours()
    own, others = ((kind_of(task), setting) for setting in (task.run.setting.name, ""))
    whole = expected.get(own, expected.get(others))
    if whole is None and not expected and design.config.hours_per_run:  # nothing is done: what the file says
        whole = design.config.hours_per_run if task.kind == TRAINING else 0.0
    if whole is None:
        return Hours(more=True)
    return Hours(left=whole * (1 - trained_share(design.dir.run(task.run.name), task)))


def trained_share(run: RunDir, task: Task) -> float:
    """Return how much of a training is behind its newest checkpoint."""
    total = run.recorded().get("total_steps") if task.kind == TRAINING else None
    return run.newest_step() / total if total else 0.0


def spent_on(task: Task) -> Hours:
    if task.kind == TRAINING:
        return of_training(RunDir(task.result.parent), task.done or task.at_work)
    seconds = read_json(task.result).get("seconds", 0.0) if task.done else 0.0
    return Hours(seconds / 3600)


def of_training(run: RunDir, going_on: bool) -> Hours:
    attempts = [attempt(run.attempts / str(number)) for number in range(1, run.last_attempt() + 1)]
    if run.done.exists() and not sum(one.seconds for one in attempts):  # of a version that wrote no more
        return Hours((read_metrics(run.metrics).end or {}).get("seconds", 0.0) / 3600)
    end = attempts[-1].last if attempts and going_on else run.newest_step()
    used, lost = used_and_lost(attempts, end)
    return Hours(used / 3600, lost / 3600)


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


def total(hours: Mapping[str, Hours], names: Sequence[str]) -> Hours:
    return sum((hours[name] for name in names), Hours())


def figure(hours: float) -> str:
    """Write hours with two or three digits."""
    if not hours:
        return "0"
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"
