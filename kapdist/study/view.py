"""A study on one screen: settings times seeds, what of each is done, hours used, lost and left."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kapdist.run.standard_output import screen, sentence
from kapdist.run.tables import print_table
from kapdist.study.design import Design
from kapdist.study.hours import Hours, figure
from kapdist.study.status import Cell, StudyStatus, read_study_status
from kapdist.study.tasks import tasks


def described(design: Design) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "name": design.config.name,
        "directory": str(design.root),
        "fingerprint": design.fingerprint,
        "tasks": [
            {"name": task.name, "command": ["kapdist", *task.words], "done": task.done} for task in tasks(design)
        ],
        "claims": [claim.text for claim in design.config.claims],
        "hours_left": read_study_status(design).hours.left,
    }


def print_plan(design: Design) -> None:
    found = read_study_status(design)
    print_status(found)
    console = screen()
    for claim in found.claims:
        sentence(console, f"claim: {claim}")


def print_status(found: StudyStatus) -> None:
    """Print a study's status; on a narrow terminal no setting's name is cut off."""
    console = screen()
    for part in parts(found):
        if isinstance(part, Table):
            print_table(console, part)
        else:
            sentence(console, part)


def render(found: StudyStatus) -> RenderableType:
    """Draw a study's status."""
    return Group(*parts(found))


def parts(found: StudyStatus) -> list[Text | Table]:
    """Return the title, the table, and the notes below it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    table.add_column("seed", Text("all"), no_wrap=True)
    for seed in found.seeds:
        table.add_column(str(seed), justify="right", no_wrap=True)
    for name, value in zip((" used", " lost", " left"), in_words(found.hours), strict=True):
        table.add_column(name, Text(value), justify="right", no_wrap=True)
    for setting in found.settings:
        by_seed = {cell.seed: cell for cell in setting.cells}
        cells = [mark(by_seed[seed]) if seed in by_seed else Text("") for seed in found.seeds]
        table.add_row(setting.name, *cells, *in_words(setting.hours))
    models = f"{len(found.settings)} settings, {len(found.cells)} models"
    title = Text(f"{found.name}: {found.done} of {found.commands} commands are done ({models})", style="bold")
    failed = [": ".join(filter(None, (cell.failed, cell.why))) for cell in found.cells if cell.failed]
    notes = [Text(f"failed: {words}", style="red") for words in failed]
    units = "commands done of each model; hours of one process (rank): used, lost thereof, left"
    notes.append(Text(units, style="dim"))
    return [title, table, *notes]


def mark(cell: Cell) -> Text:
    """Say how far a model is in a word."""
    if cell.failed:
        return Text("fail", style="red")
    if cell.done == cell.commands:
        return Text("done", style="green")
    if not cell.done and (cell.trained or cell.at_work):
        return Text(f"{cell.trained:.0%}", style="cyan")
    word = f"{cell.done}/{cell.commands}" if cell.done else "-"
    return Text(word, style="cyan" if cell.at_work else "")


def in_words(hours: Hours) -> tuple[str, str, str]:
    lost = figure(hours.lost) if hours.lost else ""
    more = "+ ?" if hours.left and hours.more else "?" if hours.more else ""
    left = figure(hours.left) if hours.left or not hours.more else ""
    return figure(hours.used) if hours.used else "", lost, f"{left} {more}".strip()
