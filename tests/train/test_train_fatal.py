"""A rank that dies of a signal: what it leaves, and what the next start says of it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import end_ranks, kill_ranks, start_ranks
from races import Baton

from kapdist.engine import Ranks
from kapdist.errors import RESUME
from kapdist.run.ends import end_of
from kapdist.run.paths import RunDir
from kapdist.train.attempt import Attempt, rank_log, told

WORDS = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.epochs=400", "train.checkpoint_every_steps=3"]


def test_the_next_start_says_what_the_last_one_died_of(tiny_config: Path) -> None:
    folder = tiny_config.parent
    run = RunDir(folder / "runs" / "tiny")

    processes = start_ranks(WORDS, 1, folder)
    wait_for(run.latest)
    os.kill(processes[0].pid, signal.SIGSEGV)
    assert end_ranks(processes, 240)[0].code == -signal.SIGSEGV
    fatal = run.attempts / "1" / "fatal-0.txt"
    assert "Segmentation fault" in fatal.read_text()
    assert "take_steps" in fatal.read_text()

    again = start_ranks(WORDS, 1, folder)
    wait_for(run.rank_log(2, 0), "continuing from")
    again[0].send_signal(signal.SIGTERM)
    assert end_ranks(again, 240)[0].code == RESUME
    kill_ranks(again)
    assert "attempt 1: rank 0 died of SIGSEGV (stacks in " in run.rank_log(2, 0).read_text()
    assert end_of(run.attempts / "1").startswith("rank 0 died of SIGSEGV")
    assert end_of(run.attempts / "2").startswith("stopped at step")
    assert not (run.attempts / "2" / "fatal-0.txt").exists()


@pytest.mark.parametrize("seed", range(5))
def test_of_three_ranks_that_fail_at_once_the_first_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    this, seen = Attempt(RunDir(tmp_path), 1), set[str]()
    this.folder.mkdir(parents=True)

    def fail(rank: int) -> None:
        with contextlib.suppress(ValueError), told(this, SimpleNamespace(rank=rank, first=not rank)):
            raise ValueError("why")
        seen.add(this.run.failed.read_text().partition(",")[0])

    baton = Baton(random.Random(seed))
    with monkeypatch.context() as patch:
        baton.watch(patch)
        assert baton.run([partial(fail, rank) for rank in range(3)]) == []
    assert len(seen) == 1
    assert end_of(this.folder).partition(" failed")[0] in ("rank 0", "rank 1", "rank 2")
    assert os.listdir(this.folder) == ["END"]


def test_an_attempt_leaves_the_log_of_its_process_as_it_was(tmp_path: Path) -> None:
    """Else what a program says after a training of its own goes to nobody."""
    logger, run = logging.getLogger("kapdist"), RunDir(tmp_path)
    run.rank_log(1, 0).parent.mkdir(parents=True)
    before = (logger.level, logger.propagate, list(logger.handlers))
    with rank_log(run, 1, Ranks()):
        assert not logger.propagate
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def wait_for(path: Path, words: str = "", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and words in path.read_text()):
        assert time.monotonic() < deadline, f"waited too long for {path}"
        time.sleep(0.02)
