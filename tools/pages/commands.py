"""Every command with its words: those of `kapdist`, read off its tree, and those of launch/, as their help says."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from kapdist.cli import app

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """\
# Commands

Each of them ends with 0 when it is done; with 75 when it was stopped and may be continued; with 2 and one line when
the input is wrong: the place, what was expected, what was found; with 1 on anything else. Standard output has the
result alone. `--help` says what is here.
"""


def page() -> str:
    """Return the reference page in Markdown."""
    parts = [INTRODUCTION]
    for words, command in commands():
        parts.append(f"## {words}\n\n{cleandoc(command.help or '')}\n\n{usage(words, command)}\n\n{table(command)}")
    for path in launched():
        parts.append(f"## python {path.relative_to(ROOT)}\n\n```text\n{help_of(path)}\n```")
    return "\n\n".join(parts)


def commands(command: Any = None, words: str = "kapdist") -> Iterator[tuple[str, Any]]:
    """Yield (words, command) of every command of `kapdist`, those of groups one by one."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, one in inner.items():
        yield from commands(one, f"{words} {name}")


def usage(words: str, command: Any) -> str:
    found = [word for word in command.params if word.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(command.params) > len(found) + 1 else []  # --help is one
    return f"```text\n{' '.join([words, *map(called, found), *options])}\n```"


def called(word: Any) -> str:
    """Return what a usage calls an argument."""
    name = name_of(word)
    if "[" in name:
        return name
    several = f"{name}..." if word.nargs == -1 else name
    return several if word.required else f"[{several}]"


def name_of(word: Any) -> str:
    return str(word.metavar or word.name.upper())


def table(command: Any) -> str:
    rows = ["| word | what it is | default |", "|---|---|---|"]
    for word in command.params:
        if word.name == "help" or getattr(word, "hidden", False):
            continue
        names = ", ".join(f"`{name}`" for name in (*word.opts, *word.secondary_opts))
        if word.param_type_name == "argument":
            names = f"`{in_a_cell(name_of(word))}`"
        rows.append(f"| {names} | {in_a_cell(word.help or '')} | {default(word)} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def default(word: Any) -> str:
    if word.required:
        return "required"
    said = isinstance(word.default, str | int | float | Path) and word.default != "" and word.default is not False
    return f"`{word.default}`" if said else ""


def in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def launched() -> list[Path]:
    """Return the commands of launch/: what a user starts, and says how by --help."""
    paths = sorted((ROOT / "launch").glob("*.py"))
    return [path for path in paths if "\n    command_line(main)\n" in path.read_text()]


def help_of(path: Path) -> str:
    """Return what a command of launch/ prints for --help."""
    said = io.StringIO()
    # A command puts its checkout first on the path, where it is already.
    with mock.patch.object(sys, "path", list(sys.path)), mock.patch.object(sys, "argv", [path.name, "--help"]):
        names = runpy.run_path(str(path))
        with mock.patch.dict("os.environ", {"COLUMNS": "100"}), contextlib.redirect_stdout(said):
            with contextlib.suppress(SystemExit):
                names["main"]()
    return said.getvalue().strip()
