"""Who reads whose heartbeat, and a watchdog that cannot write or look."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kapdist.config import Config, check_limits
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.run.paths import RunDir
from kapdist.train.watchdog import Watchdog


def watchdog(folder: Path, rank: int, limit_seconds: float = 60.0) -> Watchdog:
    """The watchdog of one of six ranks on two nodes."""
    ranks = Ranks(rank, 6, rank % 3, 3)
    return Watchdog(folder, ranks, limit_seconds, folder / "FAILED")


def beat(folder: Path, rank: int, idle: float = 0.0, age: float = 0.0) -> None:
    path = folder / f"heartbeat-{rank}.json"
    path.write_text(json.dumps({"step": 7, "idle_seconds": idle}))
    os.utime(path, (time.time() - age,) * 2)


def live(dog: Watchdog, seconds: float) -> None:
    """Let a watchdog be awake for some time."""
    for _ in range(10):
        dog.awake.looked -= seconds / 10
        dog.awake.seconds()


def test_one_rank_of_each_node_reads_all_the_others_that_one(tmp_path: Path) -> None:
    for rank in range(6):
        beat(tmp_path, rank)
    beat(tmp_path, 4, idle=100)
    for rank in (0, 3):
        assert list(watchdog(tmp_path, rank).watched) == list(range(6))
        (line,) = watchdog(tmp_path, rank).stuck()
        assert line.startswith("rank 4 made no progress for 10")
    assert set(watchdog(tmp_path, 5).watched) == {3, 5}
    assert watchdog(tmp_path, 5).stuck() == []
    mine = watchdog(tmp_path, 5)  # the reader itself stops: its node sees it
    assert mine.stuck() == []
    live(mine, 100)
    beat(tmp_path, 5)
    assert_silent(mine, 3)


def assert_silent(dog: Watchdog, rank: int) -> None:
    """For 100 seconds, and those that the test itself may have taken."""
    (line,) = dog.stuck()
    assert re.fullmatch(rf"rank {rank} gave no sign of life for 1[0-5]\d s, at step 7", line)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_is_set_ends_nobody_and_hides_nobody(tmp_path: Path, jump: float) -> None:
    """Heartbeats of ranks are stamped before and after it, as of two hosts whose clocks are an hour apart."""
    mine = watchdog(tmp_path, 0)
    for rank in range(6):
        beat(tmp_path, rank, age=jump if rank % 2 else 0)
    assert mine.stuck() == []
    live(mine, 50)
    for rank in (0, 1, 2, 4, 5):
        beat(tmp_path, rank, age=jump)
    assert mine.stuck() == []
    live(mine, 50)
    for rank in (0, 1, 2, 4, 5):
        beat(tmp_path, rank, age=jump - 1)
    assert_silent(mine, 3)


def test_where_no_heartbeat_can_be_written_nobody_is_silent(tmp_path: Path) -> None:
    """A file server that is away takes this rank's no more than the others'."""
    mine = watchdog(tmp_path, 0)
    for rank in range(6):
        beat(tmp_path, rank)
    assert mine.stuck() == []
    mine.folder = tmp_path / "away"
    mine.write()
    mine.folder = tmp_path
    live(mine, 100)
    assert mine.stuck() == []
    mine.beat(8)
    mine.write()
    live(mine, 50)
    assert mine.stuck() == []


SUSPENDED = """
import sys, time
from pathlib import Path
from kapdist.engine import Ranks
from kapdist.run.paths import RunDir
from kapdist.train.watchdog import Watchdog

folder = Path(sys.argv[1])
with Watchdog(folder, Ranks(), 3.0, folder / "FAILED") as dog:
    for step in range(1, 101):  # each so short that it has its time however many processes share the CPUs
        dog.beat(step)
        begun = time.process_time()
        while time.process_time() < begun + 0.03:  # no sleep, which would be over when the process goes on
            pass
    (folder / "went on").touch()
    time.sleep(240)
"""


def test_a_process_that_was_suspended_is_not_stuck(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT, as Slurm suspends a job for another and Ctrl-Z does; what stops afterwards is ended."""
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED, str(tmp_path)])
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "heartbeat-0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.wait(240) == 1
    finally:
        process.kill()
    assert (tmp_path / "went on").exists()
    assert "rank 0 made no progress for" in (tmp_path / "FAILED").read_text()


SLOW_TRACKER = """
import contextlib, sys, time
from pathlib import Path
from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.train import loop

DOGS = []

class Watchdog(loop.Watchdog):
    # Of three seconds, but not before the end: a step may take longer where processes share the CPUs.
    def __init__(self, *words):
        super().__init__(*words)
        self.later, self.limit_seconds = self.limit_seconds, 600.0
        DOGS.append(self)

@contextlib.contextmanager
def followed(run, train, step, active):
    yield
    for dog in DOGS:
        dog.limit_seconds = dog.later
    time.sleep(6 * active)

loop.followed, loop.Watchdog = followed, Watchdog
loop.train(load_config(Config, Path("tiny.yaml"), ["train.stall_minutes=0.05", "train.epochs=1"]))
"""


def test_a_tracker_that_is_slow_at_the_end_is_waited_for(tiny_config: Path, run_ranks) -> None:
    """It has train.tracker_seconds, which may be more than train.stall_minutes: the run is done by then."""
    (tiny_config.parent / "slow_tracker.py").write_text(SLOW_TRACKER)
    ends = run_ranks(["slow_tracker.py"], 2)
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    assert [end.code for end in ends] == [0, 0], ends
    assert run.done.exists()
    assert not run.failed.exists()


def test_what_a_reader_found_is_handed_on(tmp_path: Path) -> None:
    reader = watchdog(tmp_path, 3)
    reader.verdict = "rank 4 made no progress for 100 s, at step 7"
    reader.write()
    beat(tmp_path, 5)
    assert watchdog(tmp_path, 5).stuck() == [reader.verdict]
    assert reader.stuck() == []  # it has said so, and leaves


def test_heartbeats_are_not_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("a heartbeat is worth nothing after a crash"))
    watchdog(tmp_path, 0).write()
    assert json.loads((tmp_path / "heartbeat-0.json").read_text())["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat-0.json"]


def test_a_heartbeat_says_from_where_to_where_and_how_long(tmp_path: Path) -> None:
    """What an attempt took and did is read off its last one, whatever ended it."""
    with watchdog(tmp_path, 0) as mine:
        mine.beat(40)
        mine.beat(55)
        time.sleep(0.2)
    last = json.loads((tmp_path / "heartbeat-0.json").read_text())
    assert (last["first_step"], last["step"]) == (40, 55)
    assert 0.2 <= last["seconds"] < 60


def often_looking(folder: Path) -> Watchdog:
    """One that looks often, and leaves everybody a minute: what it would end is the process of these tests."""
    dog = watchdog(folder, 0)
    dog.interval = 0.05
    return dog


def test_a_first_beat_that_cannot_be_written_ends_no_watchdog(tmp_path: Path) -> None:
    folder = tmp_path / "not yet"
    with often_looking(folder) as dog:
        time.sleep(3 * dog.interval)
        assert dog.thread.is_alive()
        folder.mkdir()
        deadline = time.monotonic() + 240
        while not dog.path(0).exists() and time.monotonic() < deadline:
            dog.beat(1)
            time.sleep(0.01)
        assert dog.path(0).exists()


def test_a_look_that_fails_is_said_once_and_repeated(tmp_path: Path, monkeypatch, caplog) -> None:
    looks: list[int] = []

    def fail() -> list[str]:
        looks.append(1)
        raise ZeroDivisionError("of the look")

    mine = often_looking(tmp_path)
    monkeypatch.setattr(mine, "stuck", fail)
    with mine as dog:
        deadline = time.monotonic() + 240
        while len(looks) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert dog.thread.is_alive()
    assert len(looks) >= 3
    assert caplog.text.count("ZeroDivisionError: of the look") == 1
    assert "the watchdog cannot look" in caplog.text


def test_a_rank_must_be_named_before_the_others_give_up() -> None:
    def config(stall: float, timeout: float) -> Config:
        values = {"name": "x", "data": {"train": "a", "validation": "b"}}
        limits = {"train": {"stall_minutes": stall}, "engine": {"timeout_minutes": timeout}}
        return Config.model_validate(values | limits)

    check_limits(Config.model_validate({"name": "x", "data": {"train": "a", "validation": "b"}}))
    check_limits(config(1, 2))
    for stall in (2, 3):
        with pytest.raises(
            InputError, match=rf"train\.stall_minutes: .*engine\.timeout_minutes = 2.* found {stall}"
        ):
            check_limits(config(stall, 2))
