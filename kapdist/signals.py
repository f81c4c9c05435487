"""The signals that ask a process to end."""

from __future__ import annotations

import signal

# USR2 is what Slurm is told to send before a time-out, TERM what it sends at a preemption, HUP what comes when a
# terminal is closed.
ASK = (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)


def heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return the signals to listen for: all but a SIGHUP that this process was started to ignore, by nohup."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (deaf and number == signal.SIGHUP)]
