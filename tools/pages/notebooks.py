"""Notebooks: their cells run one after another, what they print kept, and shown as a page.

python -m tools.pages.notebooks    runs docs/notebooks/*.ipynb and keeps what each cell printed
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
Notebook = dict[str, Any]


def paths() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Notebook:
    found: Notebook = json.loads(path.read_text())
    return found


def run(notebook: Notebook) -> list[str]:
    """Return what each cell of code prints, and the value of its last line, as a fresh kernel shows them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [printed(source(cell), names) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(code: str, names: dict[str, Any]) -> str:
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    tree.body = [line for line in tree.body if line is not last]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            if value is not None:
                print(repr(value))
    return said.getvalue()


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def kept(notebook: Notebook) -> list[str]:
    """Return what the file says that each cell of code printed."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in cells]


def page(path: Path) -> str:
    """Return a notebook in Markdown."""
    parts = []
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell).replace(".ipynb)", ".md)"))  # a link to another notebook
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        parts += [f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell["outputs"]]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})\n"])


def keep(path: Path) -> None:
    """Run a notebook and write what it printed into its file."""
    notebook = read(path)
    texts = iter(run(notebook))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            text = next(texts)
            lines = text.splitlines(keepends=True)
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for notebook in paths():
        keep(notebook)
