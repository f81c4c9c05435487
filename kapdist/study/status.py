"""How far a study is, as one value: settings times seeds, hours used, lost and left. Only reads, and little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kapdist.errors import InputError
from kapdist.run.ends import why_failed
from kapdist.run.files import first_line_in
from kapdist.run.paths import StudyDir
from kapdist.study.design import Design, make_design
from kapdist.study.hours import Hours, hours_of_tasks, total, trained_share
from kapdist.study.settings import Trained, word_of
from kapdist.study.tasks import Task, failure_of, tasks


@dataclass(frozen=True)
class Cell:
    """One model: a setting with a seed."""

    run: str
    seed: int
    done: int
    """Commands that are done, of `commands`."""
    commands: int
    trained: float
    """Share of its training that is done for good."""
    at_work: bool
    """Somebody has a lock on something of it."""
    failed: str
    """The command that failed and is not begun again by itself; "" if none did."""
    why: str
    """What it said last, as far as that is known."""


@dataclass(frozen=True)
class SettingStatus:
    """One row: an arm at one point of its grid."""

    name: str
    cells: tuple[Cell, ...]
    hours: Hours


@dataclass(frozen=True)
class StudyStatus:
    """All of it."""

    name: str
    directory: str
    settings: tuple[SettingStatus, ...]
    claims: tuple[str, ...]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for setting in self.settings for cell in setting.cells)

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    @property
    def done(self) -> int:
        return sum(cell.done for cell in self.cells)

    @property
    def commands(self) -> int:
        return sum(cell.commands for cell in self.cells)

    @property
    def hours(self) -> Hours:
        return sum((setting.hours for setting in self.settings), Hours())

    @property
    def at_work(self) -> bool:
        return any(cell.at_work for cell in self.cells)

    def describe(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        derived = {
            "done": self.done,
            "commands": self.commands,
            "hours": asdict(self.hours),
            "at_work": self.at_work,
        }
        return asdict(self) | derived


def find_design(place: Path) -> Design:
    """Return the design that a study's file, or its directory, is of.

    Raises:
        InputError: it is neither.
    """
    if not place.exists():
        raise InputError(place, "a study's file, or the directory of one that has begun", "nothing")
    if not place.is_dir():
        return make_design(place)
    written = StudyDir(place).config
    if not (StudyDir(place).frozen.exists() and written.exists()):
        raise InputError(place, "a study's file, or the directory of one that has begun", "another directory")
    here = place.resolve()
    return make_design(written, [word_of("studies_dir", str(here.parent)), word_of("name", here.name)])


def read_study_status(design: Design) -> StudyStatus:
    every = tasks(design)
    hours = hours_of_tasks(design, every)
    of_run: dict[str, list[Task]] = {}
    for task in every:
        of_run.setdefault(task.run.name, []).append(task)
    return StudyStatus(
        name=design.config.name,
        directory=str(design.root),
        settings=tuple(
            SettingStatus(
                setting.name,
                tuple(cell(design, run, of_run[run.name]) for run in runs),
                total(hours, [task.name for run in runs for task in of_run[run.name]]),
            )
            for setting in design.settings
            for runs in [design.of_setting(setting)]
        ),
        claims=tuple(claim.text for claim in design.config.claims),
    )


def cell(design: Design, run: Trained, own: Sequence[Task]) -> Cell:
    training, (failed, why) = own[0], failure(design, own)
    return Cell(
        run=run.name,
        seed=run.seed,
        done=sum(task.done for task in own),
        commands=len(own),
        trained=1.0 if training.done else trained_share(design.dir.run(run.name), training),
        at_work=any(task.at_work for task in own),
        failed=failed,
        why=why,
    )


def failure(design: Design, own: Sequence[Task]) -> tuple[str, str]:
    """Return which of a model's commands was given up, and why, as far as that is known; nothing if none was."""
    place = design.dir.run(own[0].run.name)
    if place.failed.exists():
        return own[0].name, why_failed(place.failed)
    missing = [task for task in own if not task.done]
    found = ((task.name, failure_of(design, task)) for task in missing if not task.at_work)
    if told := next(((name, first_line_in(file)) for name, file in found if file.exists()), None):
        return told
    return (missing[0].name, first_line_in(place.not_asked)) if missing and place.not_asked.exists() else ("", "")
