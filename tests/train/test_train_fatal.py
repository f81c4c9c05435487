"""A rank that dies of a signal: what it leaves, and what the next start says of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from processes import end_ranks, kill_ranks, start_ranks

from kapdist.errors import RESUME
from kapdist.run.ends import end_of
from kapdist.run.paths import RunDir

WORDS = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.epochs=400", "train.checkpoint_every_steps=3"]


def test_the_next_start_says_what_the_last_one_died_of(tiny_config: Path) -> None:
    folder = tiny_config.parent
    run = RunDir(folder / "runs" / "tiny")

    processes = start_ranks(WORDS, 1, folder)
    wait_for(run.latest)
    os.kill(processes[0].pid, signal.SIGSEGV)
    assert end_ranks(processes, 60)[0].code == -signal.SIGSEGV
    fatal = run.attempts / "1" / "fatal-0.txt"
    assert "Segmentation fault" in fatal.read_text()
    assert "take_steps" in fatal.read_text()

    again = start_ranks(WORDS, 1, folder)
    wait_for(run.rank_log(2, 0), "continuing from")
    again[0].send_signal(signal.SIGTERM)
    assert end_ranks(again, 60)[0].code == RESUME
    kill_ranks(again)
    assert "attempt 1: rank 0 died of SIGSEGV (stacks in " in run.rank_log(2, 0).read_text()
    assert end_of(run.attempts / "1").startswith("rank 0 died of SIGSEGV")
    assert end_of(run.attempts / "2").startswith("stopped at step")
    assert not (run.attempts / "2" / "fatal-0.txt").exists()


def wait_for(path: Path, words: str = "", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and words in path.read_text()):
        assert time.monotonic() < deadline, f"waited too long for {path}"
        time.sleep(0.02)
