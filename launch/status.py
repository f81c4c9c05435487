"""Say where a run or a study, and its jobs, stand: python launch/status.py RUN [--watch [SECONDS]] [--json]"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in, as for the other commands.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import math
import time
from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from kapdist.run.files import to_json
from kapdist.run.paths import RunDir, SeedsDir
from kapdist.run.standard_output import screen
from launch.command import command_line, plain_parser
from launch.jobs import remembered, time_in
from launch.status.run import Status, read_status
from launch.status.study import StudyJobsStatus, is_study, read_study_jobs

WATCH_SECONDS = 10.0
IN_A_LOG = 500  # columns: why something failed is one line there, to be searched
Anything = Status | StudyJobsStatus


def main() -> None:
    arguments = parse()
    if arguments.json:
        found = [one.describe() for one in look(arguments.run)]
        print(to_json(found[0] if len(found) == 1 else found, indent=2))
    elif arguments.watch is None:
        screen(IN_A_LOG).print(drawn(look(arguments.run)))
    else:
        watch(arguments.run, arguments.watch)


def look(roots: Sequence[Path]) -> list[Anything]:
    each = [run for root in roots for run in runs_of(root)]
    return [read_study_jobs(root, time_in(root)) if is_study(root) else read_status(root) for root in each]


def runs_of(root: Path) -> list[Path]:
    """Return the runs of several seeds where this is the directory of their jobs, else the directory itself."""
    if is_study(root) or RunDir(root).config.exists():
        return [root]
    names = {name: None for line in remembered(SeedsDir(root).slurm) for name in line.get("models", ())}
    return [root.absolute().parent / name for name in sorted(names)] or [root]


def drawn(found: Sequence[Anything]) -> RenderableType:
    from rich.console import Group

    from launch.status.table import render

    return Group(*(one.render() if isinstance(one, StudyJobsStatus) else render(one) for one in found))


def parse() -> argparse.Namespace:
    parser = plain_parser("status", __doc__)
    about = (
        "directory of a run, of an attack, of a study, or of several seeds; several are shown one below the other"
    )
    parser.add_argument("run", type=Path, nargs="+", help=about)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print everything as JSON")
    how.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help="look again every so many seconds, until nothing more will happen by itself (Ctrl-C ends it)",
    )
    return parser.parse_args()


def seconds(word: str) -> float:
    """Read a time to wait."""
    if not 0.1 <= (value := float(word)) < math.inf:
        raise argparse.ArgumentTypeError("expected at least 0.1 s")
    return value


def watch(roots: Sequence[Path], pause: float) -> None:
    """Show it until nothing more will happen, or until Ctrl-C, which is how one leaves.

    A terminal shows the last look in place; a pipe or a file gets one look after the other.
    """
    from rich.live import Live

    console = screen(IN_A_LOG)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as shown:
        live = shown.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
        for found in statuses(roots, pause):
            if live:
                live.update(drawn(found), refresh=True)
            else:
                console.print(drawn(found), "")


def statuses(roots: Sequence[Path], pause: float) -> Iterator[Sequence[Anything]]:
    """Yield the status again and again; after the last, nothing more will happen by itself."""
    yield (found := look(roots))
    while not all(one.ended for one in found):
        time.sleep(pause)
        yield (found := look(roots))


if __name__ == "__main__":
    command_line(main)
