"""What `kapdist topography` prints: a line for each run and quantity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kapdist.records.topography import ASKED, QUANTITIES, Quantity, SubjectTopography, Topography

NAMES: dict[Quantity, str] = {
    "stored": "stored weights",
    "averaged": "averaged weights",
    "responses": "responses before the average",
    "averaged_responses": "responses behind it",
}


def print_topography(found: Topography) -> None:
    """Print the layers' summary as a table, what noise does, and the notes, on standard output."""
    console = Console()
    title = f"{found.run}/{found.name}: {found.num_images:,} images, {found.permutations:,} permutations"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("Run", "Quantity"):
        table.add_column(column)
    for column in ("Neighbours", "Others", "Beyond chance", "Effective", "Size"):
        table.add_column(column, justify="right")
    for subject in found.subjects:
        for quantity in QUANTITIES:
            if cells := row(subject, quantity):
                table.add_row(*map(Text, cells))
    console.print(table)
    for line in lines(found):
        console.print(line, markup=False, highlight=False)


def row(subject: SubjectTopography, quantity: Quantity) -> tuple[str, ...] | None:
    """Return the means over layers of one run's quantity; None where it has none."""
    measures = [measure for _, measure in subject.measures(quantity)]
    if not measures:
        return None
    beyond = f"{sum(measure.is_found for measure in measures)} of {len(measures)}" if quantity in ASKED else "–"
    share = np.mean([measure.effective / layer.kernels for layer, measure in subject.measures(quantity)])
    members = [measure.members for measure in measures if measure.members is not None]
    return (
        subject.run,
        NAMES[quantity],
        f"{np.mean([measure.neighbours for measure in measures]):.3f}",
        f"{np.mean([measure.others for measure in measures]):.3f}",
        beyond,
        f"{100 * share:.0f}%",
        f"{np.median(members):.1f}" if members else "all",
    )


def lines(found: Topography) -> Iterator[str]:
    """Yield what stands below the table."""
    yield "Means over layers. Beyond chance: layers with Holm's p of at most 0.05. Effective: independent kernels,"
    yield "of all. Size: kernels in an ensemble, the median layer's. Behind an average all kernels are alike."
    for subject in found.subjects:
        for level in subject.noise:
            moved = (
                f"logits' variance {level.logits:.3g} of the signal's, {100 * level.changed:.1f}% other predictions"
            )
            yield f"{subject.run}: {level.kind} noise {level.std:g}: {moved}"
    for subject in found.subjects:
        for note in subject.notes:
            yield f"{subject.run}: {note}"
