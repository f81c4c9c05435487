"""Runs under corruptions, read from corruptions/<name>/summary.json, and what the page says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from kapdist.report.reading import Accuracy, Count, Record, Run, read_record
from kapdist.report.table import percent, plural


class Cell(Record):
    """One kind at one severity."""

    severity: int = Count
    level: float | None = None
    num_correct: int = Count
    accuracy: Accuracy


class Kind(Record):
    """One kind and the mean over its severities."""

    kind: str
    severities: tuple[Cell, ...]
    mean_accuracy: Accuracy
    corruption_error: float | None = None

    @property
    def title(self) -> str:
        return self.kind.replace("_", " ").replace("jpeg", "JPEG")

    def at(self, severity: int) -> Cell | None:
        return next((cell for cell in self.severities if cell.severity == severity), None)


class Reference(Record):
    run: str


class Corrupted(Record):
    """summary.json of one run under corruptions, as attack/corruptions writes it."""

    format: Literal[1]
    name: str
    num_images: int = Field(ge=1)
    noise: str
    eot: int = 1
    norm: str
    clean_accuracy: Accuracy
    kinds: tuple[Kind, ...]
    random_noise: tuple[Kind, ...] = ()
    mean_corruption_accuracy: Accuracy | None = None
    mean_corruption_error: float | None = None
    reference: Reference | None = None
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None

    @property
    def severities(self) -> list[int]:
        return sorted({cell.severity for kind in self.kinds for cell in kind.severities})

    @property
    def setting(self) -> str:
        drawn = f" over {self.eot} draws" if self.eot > 1 else ""
        return f"{plural(self.num_images, 'image')}, noise {self.noise}{drawn}"

    def noise_lines(self) -> list[str]:
        """Say what plain random noise does, one line for each kind of it."""
        lines = []
        for kind in self.random_noise:
            what = "Gaussian noise, σ" if kind.kind == "random_gaussian" else f"Random {self.norm} noise, eps"
            found = (f"{cell.level:.4g}: {percent(cell.accuracy.value)}%" for cell in kind.severities)
            lines.append(f"{what} {', '.join(found)}.")
        return lines


@dataclass(frozen=True)
class CorruptionsView:
    """A run under corruptions as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    found: Corrupted
    stale: bool


def corruption_views(runs: Sequence[Run]) -> list[CorruptionsView]:
    """Return what the page shows of runs that have been under corruptions.

    Raises:
        InputError: a file that is not what its name says.
    """
    views: list[CorruptionsView] = []
    for run in runs:
        for path in sorted(run.dir.corruptions.glob("*/summary.json")):
            found = read_record(Corrupted, path)
            own = found.weights_sha256 in (None, run.weights_sha256) or run.weights_sha256 is None
            views.append(
                CorruptionsView(f"{run.label}, {found.name}", f"corruptions-{len(views) + 1}", found, not own)
            )
    return views
