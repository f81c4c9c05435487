"""What a queued job calls: a function by its name, so that whoever queues it need not import it.

submitit pickles these and calls them on every rank. Results are never asked of them: DONE, FAILED and the chunks on
disk are the truth.
"""

from __future__ import annotations

import pkgutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kapdist.errors import InputError, LockedError, StoppedError, TransientError
from kapdist.run.asked import ASK, heard
from kapdist.run.installed import extras_named
from launch.restarts import HELD, STOPPED, WRONG_INPUT

# The first that fits; after a stop there is no DONE, and the last word of the batch script will see to it.
EXIT_CODES: dict[type[Exception], int] = {
    StoppedError: STOPPED,
    LockedError: HELD,
    InputError: WRONG_INPUT,
    TransientError: 1,
}


@dataclass(frozen=True)
class Call:
    """A function and its arguments; calling it is one rank's work, and ends as a command does."""

    function: str
    """module:function, which is imported by whoever calls it."""
    arguments: tuple[Any, ...]

    def __call__(self) -> None:
        run_as_command(self.resolve_and_call)

    def resolve_and_call(self) -> None:
        pkgutil.resolve_name(self.function)(*self.arguments)


def run_as_command(work: Callable[[], None]) -> None:
    """Call `work` with the signals and exit codes of the command line, but for one: whoever was told to stop leaves
    with 0, since srun ends the other ranks of a step at the first that does not, in the middle of their saving.

    One can be told to stop from the first moment on: what has no other ranks leaves at once, a training as soon as
    they can hear of it. submitit's own handler, which would requeue the job behind our back, goes.
    """
    for number in heard(*ASK):
        signal.signal(number, leave)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    try:
        with extras_named():
            work()
    except tuple(EXIT_CODES) as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


def leave(number: int, frame: FrameType | None) -> None:
    raise StoppedError(f"stopped by {signal.Signals(number).name}; may be continued")
