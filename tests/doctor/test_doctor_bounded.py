"""An examination that hangs, raises, dies or talks is a line of the table, and ends nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kapdist.doctor.bounded import Examination, examine
from kapdist.doctor.finding import Finding, judged, ok
from kapdist.run.lock import process_start

SECONDS = 3.0


def fine() -> Iterator[Finding]:
    print("this is nobody's")
    os.write(2, b"nor is this")
    yield ok("one", "fine")
    yield ok("two", "fine too")


def raising() -> Iterator[Finding]:
    yield ok("before", "known")
    raise RuntimeError("no such\nthing")


def dying() -> Iterator[Finding]:
    os.kill(os.getpid(), signal.SIGSEGV)
    yield ok("never", "")


def leaving() -> Iterator[Finding]:
    yield ok("before", "known")
    raise SystemExit(3)


def looked_at(*looks: object, seconds: float = SECONDS) -> list[Finding]:
    every = [Examination(look.__name__, look, "wrong", "what to do") for look in looks]  # type: ignore[attr-defined]
    return examine(every, seconds)


def test_findings_come_in_the_order_of_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    found = looked_at(fine, raising, fine)
    assert [finding.name for finding in found] == ["one", "two", "before", "raising", "one", "two"]
    assert found[3] == Finding("raising", "wrong", "could not be looked at: RuntimeError: no such", "what to do")
    assert capfd.readouterr() == ("", "")


def test_who_starts_it_may_not_care_for_its_children() -> None:
    """A process that ignores SIGCHLD hands that down, and the system then keeps nothing of those that ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert [finding.name for finding in looked_at(fine, dying)] == ["one", "two", "dying"]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_library_that_kills_the_process_is_a_line() -> None:
    found = looked_at(dying, leaving)
    assert found[0] == Finding("dying", "wrong", "the process that looked died of SIGSEGV", "what to do")
    assert found[1].found == "known"
    assert "SystemExit" in found[2].found


def test_what_hangs_is_given_up_and_what_it_started_is_ended(tmp_path: Path) -> None:
    """A command of Slurm's that waits for a controller, a system call that nobody answers, an exit that hangs."""
    noted = tmp_path / "pid"

    def hanging() -> Iterator[Finding]:
        yield ok("before", "known")
        child = subprocess.Popen(["sleep", "600"])
        noted.write_text(str(child.pid))
        child.wait()

    def deaf() -> Iterator[Finding]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        yield ok("never", "")

    def silent() -> Iterator[Finding]:
        os.closerange(3, 256)
        time.sleep(600)
        yield ok("never", "")

    began = time.monotonic()
    found = looked_at(hanging, deaf, silent, fine)
    assert time.monotonic() - began < 10 * SECONDS
    assert [finding.name for finding in found] == ["before", "hanging", "deaf", "silent", "one", "two"]
    assert [finding.found for finding in found[1:4]] == [f"no answer within {SECONDS:g} s"] * 3
    deadline = time.monotonic() + 240
    while process_start(int(noted.read_text())) and time.monotonic() < deadline:  # it may be left unwaited for
        time.sleep(0.02)
    assert process_start(int(noted.read_text())) is None


def test_a_finding_is_as_grave_as_its_gravest_problem() -> None:
    problems = ((True, "note", "a"), (False, "wrong", "b"), (True, "wrong", "c"))
    assert judged("n", "f", *problems) == Finding("n", "wrong", "f", "a; c")  # type: ignore[arg-type]
    assert judged("n", "f", problems[0]) == Finding("n", "note", "f", "a")  # type: ignore[arg-type]
    assert judged("n", "f", problems[1]) == Finding("n", "ok", "f")  # type: ignore[arg-type]
