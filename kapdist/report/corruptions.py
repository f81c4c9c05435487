"""What the page says of runs under corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.records.corruptions import CellSummary, CorruptionSummary, KindSummary, read_corruption_summary
from kapdist.report.reading import Run
from kapdist.report.words import percent, plural
from kapdist.statistics.intervals import Proportion


@dataclass(frozen=True)
class KindTable:
    """One table of accuracies: all of one source."""

    anchor: str
    caption: str
    kinds: tuple[KindSummary, ...]

    @property
    def severities(self) -> list[int]:
        return sorted({cell.severity for kind in self.kinds for cell in kind.severities})

    def column(self, severity: int) -> str:
        return f"Severity {severity}" if severity else "As they are"

    @property
    def rows(self) -> list[tuple[str, KindSummary, list[CellSummary | None]]]:
        """Each kind's title, itself, and its cell at every severity that any kind has."""
        return [
            (title(kind), kind, [cell_at(kind, severity) for severity in self.severities]) for kind in self.kinds
        ]


@dataclass(frozen=True)
class CorruptionsView:
    """A run under corruptions as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    found: CorruptionSummary
    stale: bool

    @property
    def tables(self) -> list[KindTable]:
        """Ours, and apart from it that of a published set: no table and no mean has both."""
        found, theirs = self.found, self.found.published
        tables = (
            [KindTable(self.anchor, "Ours, made from the images under attack", found.kinds)] if found.kinds else []
        )
        if theirs:
            caption = f"{theirs.title} as published, {plural(theirs.num_images, 'image')} a cell"
            tables.append(KindTable(f"{self.anchor}-published", caption, (*theirs.kinds, *theirs.extra)))
        return tables

    @property
    def published_lines(self) -> list[str]:
        """What a published set's cells add up to."""
        theirs, lines = self.found.published, []
        if theirs is None:
            return []
        kinds = ", ".join(title(kind) for kind in theirs.extra)
        shares = theirs.mean_corruption_accuracy or theirs.kinds[0].severities[0].accuracy
        what = "mean over its kinds and severities" if theirs.mean_corruption_accuracy else "accuracy"
        lines.append(f"{theirs.title} as published: {what} {percent(shares.value)}%{interval(shares)}.")
        if theirs.mean_corruption_error is not None and self.found.reference:
            lines.append(f"Its mCE relative to {self.found.reference.run}: {theirs.mean_corruption_error:.3f}.")
        if theirs.mean_corruption_error_alexnet is not None:
            lines.append(
                f"Its mCE relative to AlexNet, as papers state it: {theirs.mean_corruption_error_alexnet:.3f}."
            )
        return [*lines, *([f"In no mean of it: {kinds}."] if kinds else [])]

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


def interval(share: Proportion) -> str:
    return f" [{percent(share.low)}, {percent(share.high)}]"


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
