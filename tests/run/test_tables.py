"""Tables on screens of every width: all of a name and all of a number are there, whatever is broken into lines."""

from __future__ import annotations

import io

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from kapdist.run.tables import print_table, shared_out

NUMBERS = "25.0 [7.1, 59.1]", "1,234/600,000", "0.0012"


def printed(width: int) -> str:
    file = io.StringIO()
    table = Table(title="runs/one: 4 images, noise off", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for title in ("robust", "step", "hours"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("what of it")
    table.add_row("a-run-of-seed_0", *NUMBERS, "some words that may be broken")
    screen = Console(file=file, width=width)
    print_table(screen, table)
    assert screen.width == width
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_no_name_and_no_number_is_cut_off(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    for word in ("a-run-of-seed_0", *NUMBERS, "broken"):
        assert word in text
    if width >= 80:
        assert max(len(line) for line in text.splitlines()) <= width


def test_a_title_is_as_wide_as_the_screen() -> None:
    assert printed(110).splitlines()[0] == "runs/one: 4 images, noise off"


def test_the_widest_column_that_may_shrink_goes_first() -> None:
    assert shared_out(100, [10, 20], [5, 5]) == [10, 20]
    assert shared_out(22, [10, 20], [5, 5]) == [10, 12]
    assert shared_out(16, [10, 20], [5, 5]) == [8, 8]
    assert shared_out(16, [10, 20], [10, 5]) == [10, 6]
    assert shared_out(8, [10, 20], [5, 5]) == [5, 5], "not below what a word takes"
