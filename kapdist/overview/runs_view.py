"""All runs on one screen: a row for each, and one more for each further attack."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kapdist.overview.attacks import Result
from kapdist.overview.runs import RunLine
from kapdist.run.standard_output import screen, sentence
from kapdist.run.tables import print_table

WIDTH = 140  # columns, where there is no terminal that says how wide it is
STYLES = {"running": "cyan", "done": "green", "failed": "red", "damaged": "red", "stopped": "yellow"}
VERDICTS = {"pass": "green", "warn": "yellow", "fail": "red"}
TITLES = ("run", "state", "step", "clean", "robust", "sanity", "hours", "changed")
WRAPPED = "run", "robust", "changed"  # between words, where the terminal is narrow


def print_runs(folder: object, runs: Sequence[RunLine]) -> None:
    """Print runs in the order given."""
    console, table = screen(WIDTH), Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = [cells for run in runs for cells in rows_of(run)]
    shown = [number for number in range(len(TITLES)) if any(cells[number] for cells in rows)]
    for title in (TITLES[number] for number in shown):
        right = title in ("step", "clean", "hours", "changed")
        table.add_column(title, justify="right" if right else "left", no_wrap=title not in WRAPPED)
    for cells in rows:
        table.add_row(*(cells[number] for number in shown))
    if runs:
        print_table(console, table)
    for run in runs:
        if run.why and run.state in ("failed", "damaged", "stopped"):
            sentence(console, Text.assemble(f"{run.name}: ", (f"{run.state}: {run.why}", STYLES[run.state])))
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    told_states = ", ".join(f"{count} {state}" for state, count in counts.items())
    sentence(console, f"{len(runs)} runs below {folder}" + (f": {told_states}" if runs else ""), "dim")


def rows_of(run: RunLine) -> list[list[Text]]:
    """Return a run's row, and below it one for each attack but the first."""
    steps = "" if run.step is None else f"{run.step:,}" + (f"/{run.total_steps:,}" if run.total_steps else "")
    examined = any(attack.sanity for attack in run.attacks)
    attacks = [(withstood(attack), verdict(attack) if examined else Text()) for attack in run.attacks]
    robust, sanity = attacks[0] if attacks else (Text(), Text())
    first = [
        Text(run.name, overflow="fold"),
        Text(run.state, STYLES.get(run.state, "")),
        Text(steps),
        Text("" if run.clean_accuracy is None else f"{run.clean_accuracy:.1%}"),
        robust,
        sanity,
        Text(f"{run.hours:.1f}" if run.hours >= 1 else f"{run.hours:.2g}" if run.hours else ""),
        Text(time.strftime("%m-%d %H:%M", time.localtime(run.changed)) if run.changed else ""),
    ]
    return [first, *([*blank(4), *cells, *blank(2)] for cells in attacks[1:])]


def blank(count: int) -> list[Text]:
    return [Text() for _ in range(count)]


def verdict(attack: Result) -> Text:
    return Text(attack.sanity or "-", VERDICTS.get(attack.sanity, ""))


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
