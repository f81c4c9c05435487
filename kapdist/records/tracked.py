"""tracking/<name>.json: under which id a tracker, as Weights & Biases or MLflow, knows a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kapdist.records.record import Record, read_record
from kapdist.records.sealed import write_json


class Tracked(Record):
    """The file."""

    format: Literal[1] = 1
    id: str
    project: str
    """Or experiment."""
    store: str | None
    """Of Weights & Biases its mode, of MLflow its address; None: what the environment says."""
    seconds: float
    """Longest wait for it."""
    step: int = -1
    """It may know values of steps up to this one; written before they are sent."""


def read_tracked(path: Path) -> Tracked:
    """Read the file.

    Raises:
        InputError: it is none.
    """
    return read_record(Tracked, path, "remove it, and the tracker is told of another run")


def write_tracked(path: Path, tracked: Tracked) -> None:
    write_json(path, tracked.describe())
