"""A summary on a terminal: accuracy by kind and severity."""

from __future__ import annotations

from rich import box
from rich.table import Table

from kapdist.records.corruptions import CorruptionSummary, KindSummary, PublishedSummary, Reference
from kapdist.run.standard_output import screen, sentence
from kapdist.run.tables import print_table
from kapdist.statistics.intervals import Proportion


def print_summary(summary: CorruptionSummary) -> None:
    """Print accuracies in percent, on standard output: ours and a published set's in tables of their own."""
    console = screen()
    title = f"{summary.run}/{summary.name}: {summary.num_images} images, noise {summary.noise}"
    print_table(console, table_of(title, summary.kinds, bool(summary.reference)))
    for line in lines(summary):
        sentence(console, line)
    if theirs := summary.published:
        title = f"{theirs.title} as published: {theirs.num_images} images, noise {summary.noise}"
        print_table(console, table_of(title, (*theirs.kinds, *theirs.extra), bool(summary.reference)))
        for line in published_lines(theirs, summary.reference):
            sentence(console, line)


def table_of(title: str, kinds: tuple[KindSummary, ...], relative: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    severities = sorted({cell.severity for kind in kinds for cell in kind.severities})
    table.add_column("Accuracy, %")
    for column in (*map(str, severities), "mean", *(["CE"] if relative else [])):
        table.add_column(column, justify="right")
    for kind in kinds:
        table.add_row(*cells(kind, relative))
    return table


def cells(kind: KindSummary, relative: bool) -> list[str]:
    values = [percent(cell.accuracy.value) for cell in kind.severities]
    error = [] if not relative else ["–" if kind.corruption_error is None else f"{kind.corruption_error:.3f}"]
    return [kind.kind, *values, percent(kind.mean_accuracy.value), *error]


def published_lines(theirs: PublishedSummary, reference: Reference | None) -> list[str]:
    said = []
    if mean := theirs.mean_corruption_accuracy:
        said.append(f"mean over kinds of {theirs.title}: {percent(mean.value)} {interval(mean)}")
    if reference and theirs.mean_corruption_error is not None:
        said.append(f"mCE of {theirs.title} relative to {reference.run}: {theirs.mean_corruption_error:.3f}")
    if theirs.mean_corruption_error_alexnet is not None:
        said.append(f"mCE of {theirs.title} relative to AlexNet: {theirs.mean_corruption_error_alexnet:.3f}")
    return said


def interval(share: Proportion) -> str:
    return f"[{percent(share.low)}, {percent(share.high)}]"


def lines(summary: CorruptionSummary) -> list[str]:
    clean, mean = summary.clean_accuracy, summary.mean_corruption_accuracy
    said = [f"clean: {percent(clean.value)} {interval(clean)}"]
    for kind in summary.random_noise:
        values = ", ".join(f"{cell.level:.4g}: {percent(cell.accuracy.value)}" for cell in kind.severities)
        said.append(
            f"{kind.kind} of {'standard deviation' if kind.kind.endswith('gaussian') else summary.norm} {values}"
        )
    if mean:
        said.append(f"mean over kinds: {percent(mean.value)} {interval(mean)}")
    if summary.reference and summary.mean_corruption_error is not None:
        said.append(f"mCE relative to {summary.reference.run}: {summary.mean_corruption_error:.3f}")
    return said


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
