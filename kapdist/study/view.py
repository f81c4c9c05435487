"""A study on one screen: settings times seeds, and what of each is done."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from kapdist.study.design import Design, Trained
from kapdist.study.hours import hours
from kapdist.study.tasks import Task, tasks


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
    }


def print_plan(design: Design) -> None:
    every = tasks(design)
    table = Table(
        title=f"{design.config.name}: {sum(task.done for task in every)} of {len(every)} commands are done"
    )
    table.add_column("setting")
    seeds = sorted({run.seed for run in design.trained})
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("hours trained", justify="right")
    table.add_column("attacked", justify="right")
    for setting in design.settings:
        runs = {run.seed: run for run in design.of_setting(setting)}
        used = (f"{value:.2f}" if value else "" for value in hours(design, setting))
        table.add_row(setting.name, *(cell(every, runs.get(seed)) for seed in seeds), *used)
    console = Console()
    console.print(table)
    for claim in design.config.claims:
        console.print(f"claim: {claim.text}", markup=False, highlight=False)


def cell(every: tuple[Task, ...], run: Trained | None) -> str:
    own = [task for task in every if run is not None and task.run.name == run.name]
    return f"{sum(task.done for task in own)}/{len(own)}" if own else ""
