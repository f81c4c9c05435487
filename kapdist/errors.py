"""The kinds of failure: the user's input (exit code 2, one line), and everything else (exit code 1)."""

RESUME = 75  # exit code of a run that was asked to stop and saved: sysexits' EX_TEMPFAIL, "try again"


class StoppedError(Exception):
    """A run was asked to stop, has saved, and may be continued; no failure."""


class InputError(ValueError):
    """What the user gave is wrong; the message names the place, what was expected and what was found."""

    def __init__(self, place: object, expected: str, found: str) -> None:
        super().__init__(f"{place}: expected {expected}, found {found}")


class LockedError(InputError):
    """Somebody else is at work where this process wants to; that is no fault of the run's, and passes."""


class TransientError(RuntimeError):
    """What was waited for outside of this process did not come, and another start may mend it: one line, exit 1."""
