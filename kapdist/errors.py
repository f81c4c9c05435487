"""The kinds of failure: the user's input (exit code 2, one line), and everything else (exit code 1)."""

from __future__ import annotations

RESUME = 75  # exit code of a run that was asked to stop and saved: sysexits' EX_TEMPFAIL, "try again"


class StoppedError(Exception):
    """A run was asked to stop, has saved, and may be continued; no failure."""


class InputError(ValueError):
    """What the user gave is wrong; in one line the place, what was expected and what was found."""

    def __init__(self, place: object, expected: str, found: str) -> None:
        super().__init__(one_line(f"{place}: expected {expected}, found {found}"))


class LockedError(InputError):
    """Somebody else is at work where this process wants to; that is no fault of the run's, and passes."""


class TransientError(RuntimeError):
    """What was waited for outside of this process did not come, and another start may mend it: one line, exit 1."""


LONGEST = 200  # characters of a value in a message


def one_line(text: str) -> str:
    """Return a text with what no line holds written as Python writes it: a file's name may have it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shown(value: object) -> str:
    """Return a value as Python writes it, the middle left out where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "an integer of more than 4,300 digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 4 :]}"


def first_line(error: BaseException) -> str:
    """Return an error's message as one line, its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
