"""What is said of one thing: fine, worth knowing, or wrong; and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "note", "wrong"]


class Finding(NamedTuple):
    """One line of the table."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def note(name: str, found: str, remedy: str = "") -> Finding:
    return Finding(name, "note", found, remedy)


def wrong(name: str, found: str, remedy: str = "") -> Finding:
    return Finding(name, "wrong", found, remedy)


def judged(name: str, found: str, *problems: tuple[bool, Status, str]) -> Finding:
    """Return a finding with all remedies that are called for, as grave as the gravest.

    Args:
        problems: whether there is one, how grave it is, what to do.
    """
    called = [(status, remedy) for there, status, remedy in problems if there]
    status: Status = "ok"
    for grave in ("note", "wrong"):
        status = grave if any(one == grave for one, _ in called) else status
    return Finding(name, status, found, "; ".join(remedy for _, remedy in called))
