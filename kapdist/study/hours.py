"""What a study has taken so far, what of it was for nothing, what is left; hours of one process (rank) each.

Read without what tables and pictures need, so that a look at it is quick. A training's hours are those of all its
attempts; what an attempt did beyond the step that the next one resumed at was lost. Of all else, which is done in
units that stay, the hours of what is done count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kapdist.records.hours import training_hours
from kapdist.records.sealed import read_json
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
        return Hours(*training_hours(RunDir(task.result.parent), task.done or task.at_work))
    seconds = read_json(task.result).get("seconds", 0.0) if task.done else 0.0
    return Hours(seconds / 3600)


def total(hours: Mapping[str, Hours], names: Sequence[str]) -> Hours:
    return sum((hours[name] for name in names), Hours())


def figure(hours: float) -> str:
    """Write hours with two or three digits."""
    if not hours:
        return "0"
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"
