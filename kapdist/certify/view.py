"""A summary on a terminal: certified accuracy by radius, a row for each sigma."""

from __future__ import annotations

from rich import box
from rich.table import Table

from kapdist.records.certificate import CertificateSummary, SmoothedSummary
from kapdist.run.standard_output import screen, sentence
from kapdist.run.tables import print_table

COLUMNS = 8


def print_certificate(summary: CertificateSummary) -> None:
    """Print accuracies in percent, on standard output."""
    title = f"{summary.run}/{summary.name}: {summary.num_images} images, alpha {summary.alpha:g}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("σ, radius")
    radii = [at.radius for at in summary.smoothed[0].certified]
    shown = range(0, len(radii), -(-len(radii) // COLUMNS))
    for place in shown:
        table.add_column(f"{radii[place]:g}", justify="right")
    for smoothed in summary.smoothed:
        table.add_row(
            f"{smoothed.sigma:g}", *(percent(smoothed.certified[place].accuracy.value) for place in shown)
        )
    console = screen()
    print_table(console, table)
    for smoothed in summary.smoothed:
        sentence(console, line(smoothed, summary))


def line(smoothed: SmoothedSummary, summary: CertificateSummary) -> str:
    share, total = smoothed.accuracy, summary.num_images
    return (
        f"σ {smoothed.sigma:g}: accuracy {percent(share.value)} [{percent(share.low)}, {percent(share.high)}], "
        f"{smoothed.num_abstained} of {total} abstained, {smoothed.num_all_agreed} at the largest radius "
        f"{smoothed.largest_radius:.3f} of so many draws"
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
