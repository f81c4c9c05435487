"""The site's pages that are no files in docs/: from the code, from notebooks, and from the root."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from . import commands, drawing, formats, keys, notebooks, python

ROOT = Path(__file__).resolve().parents[2]
FROM_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def generated() -> dict[str, Callable[[], str]]:
    """Return what makes each page that is no file in docs/."""
    pages: dict[str, Callable[[], str]] = {
        f"reference/{name}.md": functools.partial(keys.page, name) for name in keys.KINDS
    }
    pages |= {"reference/commands.md": commands.page, "reference/python.md": python.page}
    pages |= {"reference/files.md": formats.page}
    pages |= {f"notebooks/{path.stem}.md": functools.partial(notebooks.page, path) for path in notebooks.paths()}
    return pages | {name: functools.partial(from_the_root, path) for name, path in FROM_THE_ROOT.items()}


def from_the_root(name: str) -> str:
    """Return a page of the root as one of docs/."""
    return re.sub(r"\]\(docs/([^)]*)\)", link_within, (ROOT / name).read_text())


def link_within(found: re.Match[str]) -> str:
    target = found[1] if "." in found[1] else f"{found[1].rstrip('/')}/README.md"
    return f"]({target})"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for name, make in generated().items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return drawing.drawn(markdown)
