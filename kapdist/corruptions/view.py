"""A summary on a terminal: accuracy by kind and severity."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from kapdist.records.corruptions import CorruptionSummary, KindSummary


def print_summary(summary: CorruptionSummary) -> None:
    """Print accuracies in percent, on standard output."""
    title = f"{summary.run}/{summary.name}: {summary.num_images} images, noise {summary.noise}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    severities = sorted({cell.severity for kind in summary.kinds for cell in kind.severities})
    table.add_column("Accuracy, %")
    for column in (*map(str, severities), "mean", *(["CE"] if summary.reference else [])):
        table.add_column(column, justify="right")
    for kind in summary.kinds:
        table.add_row(*cells(kind, summary))
    console = Console()
    console.print(table)
    for line in lines(summary):
        console.print(line, markup=False, highlight=False)


def cells(kind: KindSummary, summary: CorruptionSummary) -> list[str]:
    values = [percent(cell.accuracy.value) for cell in kind.severities]
    error = (
        [] if not summary.reference else ["–" if kind.corruption_error is None else f"{kind.corruption_error:.3f}"]
    )
    return [kind.kind, *values, percent(kind.mean_accuracy.value), *error]


def lines(summary: CorruptionSummary) -> list[str]:
    clean, mean = summary.clean_accuracy, summary.mean_corruption_accuracy
    said = [f"clean: {percent(clean.value)} [{percent(clean.low)}, {percent(clean.high)}]"]
    for kind in summary.random_noise:
        values = ", ".join(f"{cell.level:.4g}: {percent(cell.accuracy.value)}" for cell in kind.severities)
        said.append(
            f"{kind.kind} of {'standard deviation' if kind.kind.endswith('gaussian') else summary.norm} {values}"
        )
    if mean:
        said.append(f"mean over kinds: {percent(mean.value)} [{percent(mean.low)}, {percent(mean.high)}]")
    if summary.reference and summary.mean_corruption_error is not None:
        said.append(f"mCE relative to {summary.reference.run}: {summary.mean_corruption_error:.3f}")
    return said


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
