"""What `kapdist topography` prints: the page's table, what is said of each run, the notes."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from kapdist.records.topography import QUANTITIES, Topography
from kapdist.report.topography import noise_lines, row
from kapdist.run.standard_output import screen, sentence
from kapdist.run.tables import print_table

COLUMNS = ("Run", "Quantity", "Near", "Others", "Found", "Effective", "Size")


def print_topography(found: Topography) -> None:
    """Print means over layers, what noise does, and the notes, on standard output."""
    console = screen()
    title = f"{found.run}/{found.name}: {found.num_images:,} images, {found.permutations:,} permutations"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for subject in found.subjects:
        for quantity in QUANTITIES:
            if cells := row(subject, quantity):
                table.add_row(*map(Text, cells))
    print_table(console, table)
    notes = [f"{one.run}: {note}" for one in found.subjects for note in one.notes]
    for line in (EXPLAINED, *(line for one in found.subjects for line in noise_lines(one)), *notes):
        sentence(console, line)


EXPLAINED = (
    "Means over layers. Near: similarity of kernels that share a side. Found: layers where it is above that of the"
    " others, Holm's p at most 0.05. Effective: independent kernels, of all. Size: kernels in an ensemble (median)."
    " Behind an average neighbours are alike by construction; what is asked is what stands before it."
)
