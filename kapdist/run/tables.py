"""Tables on a screen that is as narrow as it is: words go to the next line, and no name or number is cut off."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kapdist.run.standard_output import sentence

ENDLESS = 100_000  # columns


def print_table(console: Console, table: Table) -> None:
    """Print a table and its title.

    rich takes what is missing from columns that may be wrapped until nothing is left of them, then cuts off the
    others. Here words stay whole; where they do not fit the table is wider than the screen, which breaks its lines.
    """
    if isinstance(table.title, str):  # as wide as the screen, not as the table
        sentence(console, Text(table.title, table.title_style or ""))
        table.title = None
    options = console.options.update(width=ENDLESS)
    measured = [
        [Measurement.get(console, options, cell) for cell in (column.header, column.footer, *column.cells)]
        for column in table.columns
    ]
    widest = [max(cell.maximum for cell in cells) for cells in measured]
    least = [
        full if column.no_wrap else max(cell.minimum for cell in cells)
        for column, cells, full in zip(table.columns, measured, widest, strict=True)
    ]
    borders = Measurement.get(console, options, table).maximum - sum(widest)
    for column, width in zip(table.columns, shared_out(console.width - borders, widest, least), strict=True):
        column.width = width
    before = console.width
    console.width = max(before, borders + sum(column.width or 0 for column in table.columns))
    console.print(table)
    console.width = before


def shared_out(room: int, widest: list[int], least: list[int]) -> list[int]:
    """Return widths, columns, of a sum of `room` at most where it can be; the widest that may shrink goes first."""
    widths = list(widest)
    while sum(widths) > room and (may := [n for n, width in enumerate(widths) if width > least[n]]):
        widths[max(may, key=widths.__getitem__)] -= 1
    return widths
