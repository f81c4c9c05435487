"""Signals that ask a process to stop, and those that came before anybody listened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from kapdist.run.lock import exists, process_start

# USR2 is what Slurm is told to send before a time-out, TERM what it sends at a preemption, HUP what comes when a
# terminal is closed.
ASK = (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)


def heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return the signals to listen for: all but a SIGHUP that this process was started to ignore, by nohup."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (deaf and number == signal.SIGHUP)]


EARLY: list[signal.Signals] = []
"""What was kept until the other ranks can hear of it (kapdist.train.stop)."""


def keep_for_all(number: int, frame: FrameType | None) -> None:
    """Keep a signal that a rank gets before it has met the others: if it left, they would wait for it in vain."""
    EARLY.append(signal.Signals(number))


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that the shards and the lock go too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in heard(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


STARTER = "KAPDIST_STARTED_BY"


def started_here() -> dict[str, str]:
    """Return the variables by which a child that ends with its parent knows it."""
    return {STARTER: str(os.getpid())}


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone, even by kill -9 (Linux).

    The interpreter takes a while to come here: the kernel does not tell of one that was gone before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        starter = os.environ.get(STARTER, "")
        if starter.isdecimal() and process_start(int(starter)) is None and not exists(int(starter)):
            raise SystemExit(128 + signal.SIGTERM)
