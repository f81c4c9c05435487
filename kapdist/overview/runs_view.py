"""All runs on one screen: a row for each, a line in it for each attack."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kapdist.overview.attacks import Result
from kapdist.overview.runs import RunLine
from kapdist.run.standard_output import screen, sentence

WIDTH = 140  # columns, where there is no terminal that says how wide it is
STYLES = {"running": "cyan", "done": "green", "failed": "red", "damaged": "red", "stopped": "yellow"}
VERDICTS = {"pass": "green", "warn": "yellow", "fail": "red"}
TITLES = ("run", "state", "step", "clean", "robust", "sanity", "hours", "changed")


def print_runs(folder: object, runs: Sequence[RunLine]) -> None:
    """Print runs in the order given."""
    console, table = screen(WIDTH), Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = [row(run) for run in runs]
    shown = [number for number in range(len(TITLES)) if any(cells[number] for cells in rows)]
    for title in (TITLES[number] for number in shown):
        right = title in ("step", "clean", "hours", "changed")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "run")
    for cells in rows:
        table.add_row(*(cells[number] for number in shown))
    if runs:
        console.print(table)
    for run in runs:
        if run.why and run.state in ("failed", "damaged", "stopped"):
            sentence(console, Text.assemble(f"{run.name}: ", (f"{run.state}: {run.why}", STYLES[run.state])))
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    told_states = ", ".join(f"{count} {state}" for state, count in counts.items())
    sentence(console, f"{len(runs)} runs below {folder}" + (f": {told_states}" if runs else ""), "dim")


def row(run: RunLine) -> list[Text]:
    steps = "" if run.step is None else f"{run.step:,}" + (f"/{run.total_steps:,}" if run.total_steps else "")
    examined = any(attack.sanity for attack in run.attacks)
    sanity = [Text(attack.sanity or "-", VERDICTS.get(attack.sanity, "")) for attack in run.attacks if examined]
    return [
        Text(run.name, overflow="fold"),
        Text(run.state, STYLES.get(run.state, "")),
        Text(steps),
        Text("" if run.clean_accuracy is None else f"{run.clean_accuracy:.1%}"),
        Text("\n").join(map(withstood, run.attacks)),
        Text("\n").join(sanity),
        Text(f"{run.hours:.1f}" if run.hours >= 1 else f"{run.hours:.2g}" if run.hours else ""),
        Text(time.strftime("%m-%d %H:%M", time.localtime(run.changed)) if run.changed else ""),
    ]


def withstood(attack: Result) -> Text:
    if attack.robust_accuracy is None or attack.interval is None:
        return Text(f"{attack.name}: {attack.protocol}, examined alone", "dim")
    low, high = attack.interval
    doubt = ", not believed" if attack.believed is False else ""
    doubt += ", of an earlier plan" if attack.planned_anew else ""
    share = f"{100 * attack.robust_accuracy:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    return Text.assemble(
        f"{share} ", (f"{attack.protocol} of {attack.num_images:,}{doubt}", "red" if doubt else "dim")
    )
