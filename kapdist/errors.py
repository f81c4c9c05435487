"""The two kinds of failure: the user's input (exit code 2, one line), and everything else (exit code 1)."""


class InputError(ValueError):
    """What the user gave is wrong; the message names the place, what was expected and what was found."""

    def __init__(self, place: object, expected: str, found: str) -> None:
        super().__init__(f"{place}: expected {expected}, found {found}")
