"""The ranks of a job on this machine: none outlives what started it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kapdist.run.paths import RunDir
from launch.cluster import ClusterConfig
from launch.local import LocalJob


@pytest.mark.parametrize("asked_at", [0, 1, 2])
def test_who_is_asked_while_ranks_start_ends_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at: int
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(self: LocalJob, rank: int, meeting: Path) -> subprocess.Popen[bytes]:
        assert not meeting.exists()
        started.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
        if rank == asked_at:
            os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(LocalJob, "start", start)
    job = LocalJob(RunDir(tmp_path), ClusterConfig(ranks_per_node=3))
    # A launcher that was killed had this process's number, as in a container, where numbers are small.
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / f"rendezvous-{os.getpid()}.1.json").write_text('{"hosts": [], "port": 1}')
    try:
        assert job.start_once() == 128 + signal.SIGINT
        assert job.asked == signal.SIGINT
        assert [process.poll() for process in started] == [-signal.SIGINT] * 3
    finally:
        for process in started:
            process.kill()
            process.wait()
