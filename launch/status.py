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
from collections.abc import Iterator

from rich.console import RenderableType

from kapdist.run.files import to_json
from launch.command import command_line, plain_parser
from launch.jobs import time_in
from launch.status.run import Status, read_status
from launch.status.study import StudyJobsStatus, is_study, read_study_jobs

WATCH_SECONDS = 10.0
Anything = Status | StudyJobsStatus


def main() -> None:
    arguments = parse()
    if arguments.json:
        print(to_json(look(arguments.run).describe(), indent=2))
    elif arguments.watch is None:
        from rich.console import Console

        Console().print(drawn(look(arguments.run)))
    else:
        watch(arguments.run, arguments.watch)


def look(root: Path) -> Anything:
    return read_study_jobs(root, time_in(root)) if is_study(root) else read_status(root)


def drawn(found: Anything) -> RenderableType:
    from launch.status.table import render

    return found.render() if isinstance(found, StudyJobsStatus) else render(found)


def parse() -> argparse.Namespace:
    parser = plain_parser("status", __doc__)
    parser.add_argument("run", type=Path, help="directory of a run, of an attack, or of a study")
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


def watch(root: Path, pause: float) -> None:
    """Show it until nothing more will happen, or until Ctrl-C, which is how one leaves.

    A terminal shows the last look in place; a pipe or a file gets one look after the other.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as shown:
        live = shown.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
        for found in statuses(root, pause):
            if live:
                live.update(drawn(found), refresh=True)
            else:
                console.print(drawn(found), "")


def statuses(root: Path, pause: float) -> Iterator[Anything]:
    """Yield the status again and again; after the last, nothing more will happen by itself."""
    while not (found := look(root)).ended:
        yield found
        time.sleep(pause)
    yield found


if __name__ == "__main__":
    command_line(main)
