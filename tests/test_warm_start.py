"""A process that starts warm is the one that `python WORDS` would be: what it sees, how it is told, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import held_port, warm_python

import kapdist

SEES = """
import json, os, sys
import kapdist
sees = {"argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "word": os.environ.get("WORD")}
sees |= {"kapdist": kapdist.__file__, "cpus": sorted(os.sched_getaffinity(0)), "read": sys.stdin.read()}
print(json.dumps(sees))
print("and said", file=sys.stderr)
sys.exit(5)
"""
LEAVES = """
import atexit, os, threading, time
import held
class Left:
    def __del__(self):
        os.write(1, b"taken apart ")
held.left = Left()
atexit.register(os.write, 1, b"atexit ")
threading.Thread(target=lambda: (time.sleep(0.2), os.write(1, b"joined "))).start()
file = open("written", "w")
file.write("all of it")
raise SystemExit(6)
"""
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
open("up", "w").close()
time.sleep(3)
open("still there", "w").close()
time.sleep(60)
"""


def look(python: Path | str, folder: Path, prefix: tuple[str, ...] = ()) -> tuple[dict, str, int]:
    done = subprocess.run(
        [*prefix, str(python), "-u", "program.py", "a", "b c"],
        cwd=folder,
        env=os.environ | {"WORD": "w"},
        input="given",
        capture_output=True,
        text=True,
        timeout=240,
    )
    return json.loads(done.stdout), done.stderr, done.returncode


def test_a_warm_process_sees_and_says_what_a_cold_one_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SEES)
    warm, cold = look(warm_python(), tmp_path), look(sys.executable, tmp_path)
    assert warm == cold
    assert warm[0]["kapdist"] == kapdist.__file__
    assert warm[1:] == ("and said\n", 5)


def test_it_stays_on_the_cpus_of_who_asked(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SEES)
    one = max(os.sched_getaffinity(0))
    assert look(warm_python(), tmp_path, ("taskset", "-c", str(one)))[0]["cpus"] == [one]


def test_a_copy_of_the_code_is_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SEES)
    (tmp_path / "kapdist").mkdir()
    (tmp_path / "kapdist" / "__init__.py").write_text("")
    assert look(warm_python(), tmp_path)[0]["kapdist"] == str(tmp_path / "kapdist" / "__init__.py")


def test_it_ends_what_it_leaves_as_a_cold_one_does(tmp_path: Path) -> None:
    """Threads, then what it asked to be called, then its modules' objects; files are written whole."""
    (tmp_path / "held.py").write_text("")
    (tmp_path / "program.py").write_text(LEAVES)
    for python in (warm_python(), sys.executable):
        (tmp_path / "written").unlink(missing_ok=True)
        done = subprocess.run(
            [str(python), "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert (done.stdout, done.stderr, done.returncode) == ("joined atexit taken apart ", "", 6)
        assert (tmp_path / "written").read_text() == "all of it"


def test_the_port_of_ranks_is_theirs_before_they_listen() -> None:
    """However late they come: the system gives it to none of the processes beside."""
    with held_port() as held, socket.socket() as other, socket.socket() as rank:
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(held.getsockname())
        rank.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        rank.bind(held.getsockname())
        rank.listen()


def waiting(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "waits.py").write_text(WAITS)
    process = subprocess.Popen([str(warm_python()), "waits.py"], cwd=folder)
    deadline = time.monotonic() + 240
    while not (folder / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_signals_are_passed_on(tmp_path: Path) -> None:
    process = waiting(tmp_path)
    process.terminate()
    assert process.wait(240) == 7


def test_what_is_killed_takes_its_warm_process_along(tmp_path: Path) -> None:
    process = waiting(tmp_path)
    process.send_signal(signal.SIGKILL)
    assert process.wait(240) == -signal.SIGKILL
    time.sleep(4)
    assert not (tmp_path / "still there").exists()
