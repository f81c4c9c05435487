"""Differences on a screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kapdist.config.origins import Value
from kapdist.overview.configs import Difference, Resolved, entry
from kapdist.run.standard_output import screen, sentence


def print_differences(first: Resolved, second: Resolved, found: Sequence[Difference]) -> None:
    """Print a row for each key: its two values, each over its origin."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("", str(first.path), str(second.path)):
        table.add_column(Text(title), overflow="fold")
    for difference in found:
        table.add_row(difference.key, told(difference.first), told(difference.second))
    if found:
        screen().print(table)
    else:
        sentence(screen(), f"{first.path} and {second.path} have the same values")


def told(value: Value) -> Text:
    return Text.assemble(entry("", value.value).partition(": ")[2], ("\n" + str(value.origin), "dim"))
