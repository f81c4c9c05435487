"""The notebooks say what their cells print when they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.pages import notebooks


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path: Path) -> None:
    notebook = notebooks.read(path)
    assert notebooks.run(notebook) == notebooks.kept(notebook), (
        "python -m tools.pages.notebooks keeps what they print"
    )


def test_the_last_line_of_a_cell_is_shown_as_a_kernel_shows_it() -> None:
    cells = [
        {"cell_type": "code", "source": ["x = 2\n", "print('a')\n", "x + 1"]},
        {"cell_type": "code", "source": ["x = x + 1\n", "None"]},
        {"cell_type": "code", "source": ["x"]},
    ]
    assert notebooks.run({"cells": cells}) == ["a\n3\n", "", "3\n"]
