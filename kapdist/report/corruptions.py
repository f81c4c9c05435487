"""What the page says of runs under corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.records.corruptions import CellSummary, CorruptionSummary, KindSummary, read_corruption_summary
from kapdist.report.reading import Run
from kapdist.report.words import percent, plural


@dataclass(frozen=True)
class CorruptionsView:
    """A run under corruptions as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    found: CorruptionSummary
    stale: bool

    @property
    def severities(self) -> list[int]:
        return sorted({cell.severity for kind in self.found.kinds for cell in kind.severities})

    @property
    def rows(self) -> list[tuple[str, KindSummary, list[CellSummary | None]]]:
        """Each kind's title, itself, and its cell at every severity that any kind has."""
        return [
            (title(kind), kind, [cell_at(kind, severity) for severity in self.severities])
            for kind in self.found.kinds
        ]

    @property
    def setting(self) -> str:
        drawn = f" over {self.found.eot} draws" if self.found.eot > 1 else ""
        return f"{plural(self.found.num_images, 'image')}, noise {self.found.noise}{drawn}"

    @property
    def noise_lines(self) -> list[str]:
        """What plain random noise does, one line for each kind of it."""
        lines = []
        for kind in self.found.random_noise:
            what = "Gaussian noise, σ" if kind.kind == "random_gaussian" else f"Random {self.found.norm} noise, eps"
            cells = (f"{cell.level:.4g}: {percent(cell.accuracy.value)}%" for cell in kind.severities)
            lines.append(f"{what} {', '.join(cells)}.")
        return lines


def title(kind: KindSummary) -> str:
    return kind.kind.replace("_", " ").replace("jpeg", "JPEG")


def cell_at(kind: KindSummary, severity: int) -> CellSummary | None:
    return next((cell for cell in kind.severities if cell.severity == severity), None)


def corruption_views(runs: Sequence[Run]) -> list[CorruptionsView]:
    """Return what the page shows of runs that have been under corruptions.

    Raises:
        InputError: a file that is not what its name says.
    """
    views: list[CorruptionsView] = []
    for run in runs:
        for path in sorted(run.dir.corruptions.glob("*/summary.json")):
            found = read_corruption_summary(path)
            stale = run.weights_sha256 not in (None, found.weights_sha256)
            label = f"{run.label}, {found.name}"
            views.append(CorruptionsView(label, f"corruptions-{len(views) + 1}", found, stale))
    return views
