"""How a process ended that could not say so itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kapdist.run.ends import deaths, end_of, fatal_file, killed_by, say_end, stacks_at_death
from kapdist.run.paths import RunDir
from launch.after import cause_of, write_deaths

PROGRAM = """
import os, sys
from pathlib import Path
from kapdist.run.ends import fatal_file, stacks_at_death
def at_work():
    os.kill(os.getpid(), int(sys.argv[2]))
with stacks_at_death(fatal_file(Path(sys.argv[1]), 3)):
    at_work()
"""


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_process_that_dies_of_a_signal_leaves_its_stacks(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(int(number))], timeout=240)
    assert done.returncode == -number
    assert killed_by(done.returncode) == killed_by(128 + number) == name
    assert deaths(tmp_path) == [f"rank 3 died of {name} (stacks in {tmp_path / 'fatal-3.txt'})"]
    assert "in at_work" in (tmp_path / "fatal-3.txt").read_text()


def test_one_that_is_killed_leaves_an_empty_file(tmp_path: Path) -> None:
    number = int(signal.SIGKILL)
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(number)], timeout=240)
    assert [line.partition(" (")[0] for line in deaths(tmp_path)] == ["rank 3 ended without a word"]
    (tmp_path / "fatal-5.txt").write_text("Fatal Python error: Bus error\n\nCurrent thread ...\n")
    assert deaths(tmp_path) == [
        f"rank 5 died of SIGBUS (stacks in {tmp_path / 'fatal-5.txt'})"
    ]  # the rest followed


def test_a_good_end_and_an_error_leave_nothing(tmp_path: Path) -> None:
    with stacks_at_death(fatal_file(tmp_path, 0)):
        assert fatal_file(tmp_path, 0).exists()
    with pytest.raises(ValueError, match="x"), stacks_at_death(fatal_file(tmp_path, 0)):
        raise ValueError("x")
    assert deaths(tmp_path) == []


def test_codes_that_are_no_signals() -> None:
    assert [killed_by(code) for code in (0, 1, 2, 75, 128, 255)] == [""] * 6


def test_the_first_to_say_how_it_ended_is_believed(tmp_path: Path) -> None:
    assert end_of(tmp_path) == ""
    say_end(tmp_path, "rank 1 failed: why")
    say_end(tmp_path, "rank 0 failed: rank 1 left")
    assert end_of(tmp_path) == "rank 1 failed: why"


def test_failed_is_written_where_no_rank_could(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    folder = run.attempts / "2"
    folder.mkdir(parents=True)
    write_deaths(run, 0)
    write_deaths(run, 1)
    assert not run.failed.exists()  # nothing is known of it
    assert cause_of(run, 137) == "a rank died of SIGKILL (exit code 137)"
    say_end(folder, "wrong input: data.train: expected this, found that")
    assert cause_of(run, 2) == "wrong input: data.train: expected this, found that"
    (folder / "fatal-1.txt").write_text("Fatal Python error: Segmentation fault\n")
    write_deaths(run, 139)
    assert run.failed.read_text() == f"rank 1 died of SIGSEGV (stacks in {folder / 'fatal-1.txt'})\n"
    run.failed.write_text("rank 0, attempt 2\n")
    write_deaths(run, 139)
    assert run.failed.read_text() == "rank 0, attempt 2\n"  # a rank that could say why knows more
