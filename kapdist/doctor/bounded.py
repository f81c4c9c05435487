"""Examinations side by side, each in a process of its own that may hang, crash or raise, which is then a line."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kapdist.doctor.finding import Finding, Status
from kapdist.errors import first_line, one_line
from kapdist.run.files import to_json

BLOCK = 1 << 16
POLL_SECONDS = 0.001


class Examination(NamedTuple):
    """What is looked at, and what it means where it gives no answer."""

    name: str
    look: Callable[[], Iterator[Finding]]
    """Yields what it finds as soon as it knows it."""
    silent: Status
    remedy: str


class Started(NamedTuple):
    """An examination in its process."""

    examination: Examination
    pid: int
    pipe: int
    said: bytearray


def examine(examinations: Sequence[Examination], seconds: float) -> list[Finding]:
    """Return what all of them find within a time limit, in their order; what hangs is killed and not waited for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else, where it is ignored, nobody learns how a process ended
    running = [start(one) for one in examinations]
    ended = listen(running, time.monotonic() + seconds)
    return [finding for one in running for finding in findings(one, ended.get(one.pid), seconds)]


def start(examination: Examination) -> Started:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Started(examination, pid, reading, bytearray())
    with contextlib.suppress(BaseException):
        os.close(reading)
        look(examination, writing)
    os._exit(0)


def look(examination: Examination, writing: int) -> None:
    """Write each finding as a line of JSON; runs in the child, whose other output is nobody's."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
    faulthandler.disable()
    try:
        for finding in examination.look():
            tell(writing, finding)
    except BaseException as error:
        found = f"could not be looked at: {type(error).__name__}: {one_line(first_line(error))}"
        tell(writing, Finding(examination.name, examination.silent, found, examination.remedy))


def tell(writing: int, finding: Finding) -> None:
    os.write(writing, to_json(finding).encode() + b"\n")


def listen(running: Sequence[Started], deadline: float) -> dict[int, int]:
    """Gather what the processes write; return {pid: how it ended} of those that do within the time."""
    ended: dict[int, int] = {}
    with selectors.DefaultSelector() as waiting:
        for one in running:
            waiting.register(one.pipe, selectors.EVENT_READ, one)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                if block := os.read(key.data.pipe, BLOCK):
                    key.data.said.extend(block)
                else:
                    waiting.unregister(key.data.pipe)
    for one in running:
        os.close(one.pipe)
        if (how := wait(one.pid, deadline)) is not None:
            ended[one.pid] = how
    for one in running:
        if one.pid not in ended:
            end(one.pid)
    return ended


def wait(pid: int, deadline: float) -> int | None:
    """Return how a process ended; None where it does not in time, as where a file of it cannot be closed."""
    while True:
        found, how = os.waitpid(pid, os.WNOHANG)
        if found:
            return how
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def end(pid: int) -> None:
    """Kill a process and what it started; one that the kernel does not let go (a dead file server) is left."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def findings(one: Started, end: int | None, seconds: float) -> Iterator[Finding]:
    """Yield what an examination said, and what its end says."""
    examination = one.examination
    for line in one.said.splitlines():
        with contextlib.suppress(ValueError):  # half a line of one that was killed
            yield Finding(*json.loads(line))
    if end is None:
        found = f"no answer within {seconds:g} s"
        yield Finding(examination.name, examination.silent, found, examination.remedy)
    elif os.WIFSIGNALED(end):
        name = signal.Signals(os.WTERMSIG(end)).name
        yield Finding(examination.name, "wrong", f"the process that looked died of {name}", examination.remedy)


def answer(*words: str, seconds: float = 60.0) -> str | None:
    """Return what a command prints; None where it is not there or fails. The examination's own limit ends it."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
