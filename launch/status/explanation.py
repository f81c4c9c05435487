"""The log line that explains a failure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 64 * 2**10

# An exception's last line, wrong input, a rank that was killed, memory that ran out.
ERROR = re.compile(
    r"\w+(Error|Exception|Interrupt)\b|: expected .+, found |\berror:|\bkilled\b|out of memory|\boom\b|oom.kill"
    r"|segmentation fault|core dumped|no space left|no sign of life|no progress for|due to time limit",
    re.IGNORECASE,
)
# What Slurm and submitit say of every end, whatever was its cause.
NOISE = re.compile(
    r"pmix|\*\*\* (STEP|JOB) .* CANCELLED AT (?!.*DUE TO TIME LIMIT)|Job step aborted|Exited with exit code"
    r"|submitit ERROR|Terminating StepId|x11|Traceback \(most recent",
    re.IGNORECASE,
)
WITHOUT_CAUSE = re.compile(r"^exit code -?\d+; see |; see \S+$")


@dataclass(frozen=True)
class LogLine:
    """A line and the file that it stands in."""

    line: str
    file: str


def explain(sentinel: Path | None, logs: Iterable[Path]) -> LogLine | None:
    """Return the last line of FAILED where it names a cause, else the first log's last line that looks like one.

    Args:
        logs: the likeliest first; only their ends are read.
    """
    last = last_line(sentinel) if sentinel else ""
    if last and not WITHOUT_CAUSE.search(last):
        return LogLine(last, str(sentinel))
    for path in logs:
        if line := last_error(path):
            return LogLine(line, str(path))
    return LogLine(last, str(sentinel)) if last else None


def last_error(path: Path) -> str | None:
    """Return the last line of a log that looks like an error and is not what Slurm says of every end."""
    for line in reversed(tail(path).splitlines()):
        if ERROR.search(line) and not NOISE.search(line):
            return line.strip()
    return None


def last_line(path: Path) -> str:
    lines = [line.strip() for line in tail(path).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the end of a file, from a line's beginning; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if length > size else text
