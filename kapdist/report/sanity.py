"""The sanity reports of runs, read from attacks/<name>/sanity.json, and what the page says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from kapdist.report.plots import Plot
from kapdist.report.reading import Count, Record, Run, read_record
from kapdist.report.table import plural
from kapdist.report.words import as_255ths

Status = Literal["pass", "warn", "fail", "not asked"]


class Check(Record):
    """One number of the report and how it was judged."""

    name: str
    group: int
    group_title: str
    title: str
    cause: str
    meaning: str
    source: str
    value: float | None
    warn: float | None
    fail: float | None
    worse: Literal["above", "below"]
    status: Status

    @property
    def number(self) -> str:
        return "–" if self.value is None else f"{self.value:.3g}"

    @property
    def limits(self) -> str:
        """The thresholds as the page shows them: warning, failure."""
        sign = ">" if self.worse == "above" else "<"
        return ", ".join("–" if limit is None else f"{sign} {limit:g}" for limit in (self.warn, self.fail))

    @property
    def paper(self) -> str:
        return self.source.partition(", http")[0]

    @property
    def link(self) -> str:
        return "http" + self.source.partition(", http")[2]


class Curve(Record):
    """Points of a line; `y` is None where nothing could be measured."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]
    unbounded: float | None = None


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
    """sanity.json of one attack, as attack/sanity writes it."""

    format: Literal[1]
    name: str
    norm: str
    eps: float = Field(gt=0)
    noise: str
    verdict: Status
    causes: tuple[str, ...]
    suspected: tuple[str, ...]
    num_images: int = Count
    num_clean_correct: int = Count
    draws: int = Count
    iterations: int = Count
    restarts: int = Count
    checks: tuple[Check, ...]
    attacks: dict[str, float]
    curves: Curves
    forwards: int = Count
    backwards: int = Count
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None

    def count(self, status: Status) -> int:
        return sum(check.status == status for check in self.checks)

    def meanings(self, status: Status) -> dict[str, list[Check]]:
        """Return the causes that checks of a status name, each with those checks."""
        found: dict[str, list[Check]] = {}
        for check in self.checks:
            if check.status == status:
                found.setdefault(f"{check.cause}: {check.meaning}", []).append(check)
        return found

    @property
    def setting(self) -> str:
        eps = f"{self.norm}, eps {self.eps:.4g} ({as_255ths(self.eps)}), noise {self.noise}"
        drawn = f", {self.draws} draws" if self.draws > 1 else ""
        return f"{eps}, {plural(self.num_clean_correct, 'correct image')} of {self.num_images}{drawn}"


@dataclass(frozen=True)
class SanityView:
    """A sanity report as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    report: Sanity
    stale: bool
    plots: tuple[Plot, ...]


def read_sanity(run: Run) -> list[Sanity]:
    """Read a run's sanity reports, by name.

    Raises:
        InputError: a file that is not one.
    """
    return [read_record(Sanity, path) for path in sorted(run.dir.attacks.glob("*/sanity.json"))]


def sanity_views(runs: Sequence[Run]) -> list[SanityView]:
    """Return what the page shows of all sanity reports, run by run."""
    from kapdist.report.sanity_plots import sanity_plots

    views: list[SanityView] = []
    for run in runs:
        for report in read_sanity(run):
            title = f"{run.label}, {report.name}"
            own = report.weights_sha256 in (None, run.weights_sha256) or run.weights_sha256 is None
            drawn = sanity_plots(report, f"{run.label}-{report.name}".replace("/", "-"))
            views.append(SanityView(title, f"sanity-{len(views) + 1}", report, not own, drawn))
    return views
