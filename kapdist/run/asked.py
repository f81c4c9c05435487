"""Signals that ask a process to stop, and those that came before anybody listened."""

from __future__ import annotations

import ctypes
import signal
import sys
from types import FrameType

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


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone, even by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
