"""What launch/ reads and writes while another process does, in every order that chance finds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from races import Baton

from kapdist.run.files import first_line_in, write_atomic
from kapdist.run.paths import RunDir
from launch.after import Start, conclude
from launch.cluster import ClusterConfig
from launch.status.slurm import Answers
from launch.status.training import read_training


@pytest.mark.parametrize("seed", range(3))
def test_a_look_at_a_run_that_starts_again_ends_in_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each start fails, FAILED is set aside, and who submits it anew forgets how the last ones ended."""
    run = RunDir(tmp_path / "x")
    (run.attempts / "1").mkdir(parents=True)

    def start() -> None:
        for _ in range(10):
            write_atomic(run.failed, "rank 0\nValueError: the reason\n")
            assert conclude(Start("train", run.root), 1, ClusterConfig(max_failures=99))[0] == "again"
            Start("train", run.root).ends.forget()

    states: set[str] = set()

    def look() -> None:
        for _ in range(60):
            assert first_line_in(run.failed) in ("", "rank 0")
            assert {end.code for end in Start("train", run.root).ends.read()} <= {1}
        states.add(read_training(run, [], Answers(queue={})).verdict.state)

    baton = Baton(random.Random(seed))
    with monkeypatch.context() as patch:
        baton.watch(patch)
        assert baton.run([start, look, look]) == []
    assert states <= {"FAILED", "STOPPED"}
