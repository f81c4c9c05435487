"""How an attempt ended, told by itself where it could and by what it left where it could not.

A process that dies of a signal (a fault in a library, memory that ran out) runs no Python any more. While a file is
open for it, the interpreter's fault handler writes the stacks there; an empty one that is left was killed outright.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from kapdist.run.files import text_in, write_first

SIGNAL_CODES = 128  # of a shell, and of srun: 128 and the signal's number

# faulthandler's words for the signals that it handles.
FAULTS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
DIED = "died of"
TRACEBACK = "Traceback (most recent call last):\n"
OUTRIGHT = "SIGKILL, as when memory runs out, or its machine is gone"


def fatal_file(folder: Path, number: int) -> Path:
    """Return where the stacks of a rank's or shard's death go."""
    return folder / f"fatal-{number}.txt"


@contextlib.contextmanager
def stacks_at_death(path: Path) -> Iterator[None]:
    """Have the stacks of all threads written to a file if this process dies of a signal; gone after a good end."""
    before = faulthandler.is_enabled()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
            path.unlink(missing_ok=True)


def deaths(folder: Path) -> list[str]:
    """Say of each rank that left its file behind what it died of; those that left stacks first."""
    found = {path: cause_in(path) for path in sorted(folder.glob("fatal-*.txt"), key=rank_of)}
    told = [f"rank {rank_of(path)} {DIED} {cause} (stacks in {path})" for path, cause in found.items() if cause]
    silent = [str(rank_of(path)) for path, cause in found.items() if not cause]
    if silent and not told:
        return [f"rank {', '.join(silent)} ended without a word ({OUTRIGHT})"]
    return told


def cause_in(path: Path) -> str:
    """Return the signal that a file of stacks tells of, "" where it tells of none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"Fatal Python error: (.+)", text)
    return FAULTS.get(found[1].strip(), found[1].strip()) if found else ""


def rank_of(path: Path) -> int:
    word = path.stem.removeprefix("fatal-")
    return int(word) if word.isdecimal() else -1


def killed_by(code: int) -> str:
    """Return the name of the signal that an exit code stands for (-n or 128 + n), "" where it is none."""
    number = -code if code < 0 else code - SIGNAL_CODES
    try:
        return signal.Signals(number).name if number > 0 else ""
    except ValueError:
        return ""


def say_end(folder: Path, line: str) -> None:
    """Note how an attempt ended; the first to say so knows why."""
    with contextlib.suppress(OSError):
        write_first(folder / "END", line + "\n")


def end_of(folder: Path) -> str:
    """Return what was noted of an attempt's end, "" if nothing was."""
    with contextlib.suppress(OSError):  # a look at a run ends for none of them
        return text_in(folder / "END").strip()
    return ""


def why_failed(failed: Path) -> str:
    """Return in one line why there is no going on, as a file FAILED has it; "" where there is none.

    Who failed, or was given up, stands in its first line; where a traceback follows, it ends with the error.
    """
    text = text_in(failed)
    said = text.partition("\n")[0]
    last = text.rpartition(TRACEBACK)[2] if TRACEBACK in text else ""
    error = next((line for line in last.splitlines() if line and not line[0].isspace()), "")
    return f"{said}: {error}" if error else said
