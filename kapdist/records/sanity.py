"""attacks/<name>/sanity.json: whether an attack's number can be believed, check by check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kapdist.records.record import Count, Record, read_record

Status = Literal["pass", "warn", "fail", "not asked"]


class CheckResult(Record):
    """One number of the report and how it was judged."""

    name: str
    group: int
    group_title: str
    title: str
    cause: str
    """A key word; `meaning` says it in a sentence."""
    meaning: str
    source: str
    """The paper that asks for it, and its address."""
    value: float | None
    warn: float | None
    fail: float | None
    worse: Literal["above", "below"]
    status: Status


class Curve(Record):
    """Points of a line; `y` is None where nothing could be measured."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]
    unbounded: float | None = None
    """The last point, where there is no bound on the perturbation."""


class Landscape(Record):
    """The loss on a square grid around an image, steps in units of eps; rows follow the gradient."""

    steps: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]


class Curves(Record):
    """What is drawn; lines over draws exist for models with noise alone."""

    iterations: Curve
    eps: Curve
    neighbours: Curve
    landscape: Landscape
    draws: Curve | None = None
    agreement: Curve | None = None


class Sanity(Record):
    """The file."""

    format: Literal[1] = 1
    name: str
    run: str = ""
    norm: str
    eps: float = Field(gt=0)
    noise: str
    seed: int = 0
    iterations: Count
    restarts: Count
    queries: Count = 0
    surrogate: str | None = None
    """The run whose adversarial images were tried too."""
    device: str | None = None
    threads: int | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)
    images_sha256: str | None = None
    weights_sha256: str | None = None
    notes: tuple[str, ...] = ()
    verdict: Status
    causes: tuple[str, ...]
    """Of checks that failed."""
    suspected: tuple[str, ...]
    """Of checks that warned alone."""
    num_images: Count
    num_clean_correct: Count
    draws: Count
    checks: tuple[CheckResult, ...]
    attacks: dict[str, float]
    """Accuracy under each of the report's own attacks."""
    curves: Curves
    forwards: Count
    backwards: Count
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """Return JSON values; a curve that nobody asked for is left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    def count(self, status: Status) -> int:
        return sum(check.status == status for check in self.checks)


def read_sanity(path: Path) -> Sanity:
    """Read a sanity report.

    Raises:
        InputError: the file is none.
    """
    return read_record(Sanity, path, "kapdist attack sanity writes it again")
