"""The trackers that there are, and what each has to be able to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from kapdist.config import TrainConfig
from kapdist.records.tracked import Tracked, read_tracked, write_tracked
from kapdist.run.installed import need
from kapdist.run.paths import RunDir
from kapdist.tracking.mlflow_run import MlflowRun
from kapdist.tracking.told import Results, Row
from kapdist.tracking.wandb_run import WandbRun


class Tracker(Protocol):
    """A run as a tracker knows it, begun or continued; errors are those of the tracker's own library."""

    address: str
    """Where people look at it."""

    def __init__(self, run: RunDir, tracked: Tracked) -> None: ...

    def log(self, rows: Sequence[Row]) -> None:
        """Take the rows that are not there yet; each is complete, and they ascend."""

    def keep(self, results: Results) -> None:
        """Take what is known beside the steps, in place of what was known before."""

    def end(self, how: str) -> None:
        """Close the run: done, failed or stopped."""


class Kind(NamedTuple):
    """A tracker, and what a config says of it."""

    title: str
    key: str
    """That asks for it; its package has the tracker's name, and so has the extra."""
    project: Callable[[TrainConfig], str | None]
    store: Callable[[TrainConfig], str | None]
    open: type[Tracker]


TRACKERS = {
    "wandb": Kind(
        "Weights & Biases", "train.wandb_project", lambda it: it.wandb_project, lambda it: it.wandb_mode, WandbRun
    ),
    "mlflow": Kind(
        "MLflow", "train.mlflow_experiment", lambda it: it.mlflow_experiment, lambda it: it.mlflow_uri, MlflowRun
    ),
}


def asked(train: TrainConfig) -> dict[str, Kind]:
    """Return the trackers that a config names."""
    return {name: kind for name, kind in TRACKERS.items() if kind.project(train) is not None}


def check_trackers(train: TrainConfig) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        InputError: names the key and the extra.
    """
    for name, kind in asked(train).items():
        need(name, place=kind.key)


def known(run: RunDir) -> list[str]:
    """Return the trackers that are told of a run."""
    return [name for name in TRACKERS if run.tracked(name).exists()]


def begin(run: RunDir, name: str, train: TrainConfig, step: float) -> None:
    """Note under which id a tracker of the config knows a run that goes on after a step.

    What a tracker knows beyond that step it cannot forget, so it is told of another run then, from its beginning.
    """
    path, kind = run.tracked(name), TRACKERS[name]
    before, project = read_tracked(path) if path.exists() else None, kind.project(train)
    assert project is not None
    if before is not None and before.step > step:
        before = None
    write_tracked(
        path,
        Tracked(
            id=before.id if before else uuid.uuid4().hex[:8],
            project=project,
            store=kind.store(train),
            seconds=train.tracker_seconds,
            step=before.step if before else -1,
        ),
    )
