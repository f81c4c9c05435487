"""What a study began with, and what it comes to: study.json and results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kapdist.records import sealed
from kapdist.records.record import Record, read_record

REMEDY = "another name=, or move the directory away"


class FrozenStudy(Record):
    """study.json: what decides the numbers of a study, and may only grow."""

    format: Literal[1] = 1
    runs: dict[str, dict[str, Any]]
    """{name: {key: value} of what it learns}."""
    attacks: dict[str, dict[str, Any]]
    arms: dict[str, tuple[str, ...]]
    """{attack: arms that it is made on}."""
    seeds: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """{attack: seeds that it is made on}, where it is not all."""
    claims: tuple[str, ...]
    under: dict[str, str] = Field(default_factory=dict)
    """{claim: attack} where there are several; a claim that names none is about the first in the file."""
    sanity: tuple[str, ...] = ()
    """Attacks that are examined."""
    examined: dict[str, dict[str, tuple[Any, ...]]] = Field(default_factory=dict)
    """{attack: {"arms" and "seeds": of its own that are examined}}, where it is not all."""
    topography: dict[str, int] | None = None
    later: tuple[str, ...] = ()
    """Claims that came when there were results already."""
    grown: tuple[tuple[str, ...], ...] = ()
    """At each growth, the arms of which more was to be attacked when there were results of them already."""


class Decision(Record):
    """What became of a claim."""

    claim: str
    verdict: Literal["shown", "refuted", "not decided"]
    why: str
    """The test behind it, or what kept it from being made."""
    first: str
    over: str
    """The settings, or arms, that were compared."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float = 0.0
    p: float | None = None
    """Of "the difference is the margin"."""
    p_holm: float | None = None
    """Corrected for the looks at it, and for all claims of the study that were tested."""
    per_seed: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    num_images: int = 0
    clean: tuple[float, float] | None = None
    """Where frontiers are compared: from which clean accuracy to which."""
    more: str = ""
    """What it would take to decide it."""
    later: bool = False
    looks: int = 1
    """How often it may have been looked at: once, and once more for every time that its arms have grown."""
    dominance: str = ""
    """Where frontiers are compared: whether one arm is better on both accuracies, beside the verdict."""


class Row(Record):
    """One setting under one attack at one eps; eps 0 is clean."""

    arm: str
    setting: str
    attack: str
    norm: str
    eps: float
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    """Accuracy of each seed."""
    value: float
    low: float
    high: float
    method: str
    num_images: int
    files: tuple[str, ...]
    """The records that it was counted from."""


class Beside(Record):
    """What else is known of a setting, over its seeds."""

    setting: str
    sanity: str
    kernels: str
    certified: str = ""
    corrupted: str = ""
    attack_passes: int
    """Images passed forward and backward by its attacks."""
    alike: tuple[float, float] | None = None
    """How alike kernels answer, of neighbours and of others, the mean over layers and seeds."""


class Cost(Record):
    """What a setting took, hours of one process each, and where; another run of the same study takes others."""

    setting: str
    trained: float
    lost: float
    """Of the trained: steps that were repeated after a kill, and starts that came to nothing."""
    attacked: float
    asked: float
    """Sanity, topography, certificates, corruptions."""
    machines: tuple[str, ...]


class StudyCosts(Record):
    """costs.json."""

    format: Literal[1] = 1
    name: str
    costs: tuple[Cost, ...]


class StudyResults(Record):
    """results.json: the whole table, and every claim."""

    format: Literal[1] = 1
    name: str
    fingerprint: str
    num_tasks: int
    num_done: int
    missing: tuple[str, ...]
    """Commands that are not done, by name."""
    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]
    beside: tuple[Beside, ...] = ()
    notes: tuple[str, ...] = ()


def read_frozen(path: Path) -> FrozenStudy:
    return read_record(FrozenStudy, path, REMEDY)


def write_study_record(path: Path, record: Record) -> None:
    sealed.write_json(path, record.describe())
