"""A queued training ends with the bits of an undisturbed one, whatever Slurm did to it on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import ranks_of_job, warm_python
from results import numbers
from safetensors.torch import load_file
from unhurried import unhurried

from kapdist.run.paths import RunDir
from launch.restarts import Restarts

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch" / "train.py"
CLUSTER = ["--cluster", ROOT / "configs" / "cluster" / "sandbox.yaml"]
LONG = ["train.epochs=8", "train.evaluate_every_epochs=4", "train.checkpoint_every_steps=2"]


def long() -> list[str]:
    """What makes a run long enough to be disturbed, by ranks that start in a second and not in ten."""
    return [*LONG, f"cluster.python={warm_python()}"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_betons: tuple[Path, Path]) -> Callable[[], RunDir]:
    """The run that the others must equal: two ranks on this machine, started now and waited for when called.

    Of several workers the first makes it for all.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "undisturbed"
    ended = folder / "ended.txt"
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        write_config(folder, small_betons)
        script = '"$@" > words.txt 2>&1; echo "exit code $?" >> words.txt; mv words.txt ended.txt'
        command = [warm_python(), LAUNCH, "tiny.yaml", "--local", "cluster.nodes=2", *long()]
        subprocess.Popen(["sh", "-c", script, "sh", *map(str, command)], cwd=folder, start_new_session=True)

    def wait() -> RunDir:
        deadline = time.monotonic() + 600
        while not ended.exists():
            assert time.monotonic() < deadline, "the undisturbed run takes too long"
            time.sleep(0.25)
        assert ended.read_text().endswith("exit code 0\n"), ended.read_text()
        return RunDir(folder / "runs" / "tiny")

    return wait


def write_config(folder: Path, betons: tuple[Path, Path]) -> None:
    from conftest import TINY

    (folder / "tiny.yaml").write_text(unhurried(TINY.format(train=betons[0], test=betons[1]), folder, 0.25))


class Queued:
    """A training in the sandbox's queue."""

    def __init__(self, slurm, folder: Path, *words: str) -> None:
        self.slurm, self.folder, self.run = slurm, folder, RunDir(folder / "runs" / "tiny")
        self.attempt = 0
        self.launch(*words)
        self.job = json.loads((self.run.slurm / "jobs.jsonl").read_text().splitlines()[-1])["job"]

    def launch(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [warm_python(), LAUNCH, "tiny.yaml", *CLUSTER, *long(), *words]
        return self.slurm.run(command, cwd=self.folder, check=check)

    def update(self, *words: str) -> None:
        self.slurm.run(["scontrol", "update", f"JobId={self.job}", *words])

    def restarts(self) -> int:
        return int(self.slurm.job(self.job).get("Restarts", 0))

    def wait_for_a_checkpoint(self) -> None:
        """Wait until a new attempt has gone further than the ones before it."""
        self.slurm.wait_until(lambda: self.run.last_attempt() > self.attempt, f"attempt {self.attempt + 1}", 240)
        self.attempt, step = self.run.last_attempt(), self.run.newest_step()
        self.slurm.wait_until(lambda: self.run.newest_step() > step, f"a checkpoint after step {step}", 240)

    def wait_for_restart(self, before: int) -> None:
        self.slurm.wait_until(lambda: self.restarts() > before, f"restart {before + 1} of job {self.job}", 240)

    def wait_until_done(self) -> None:
        """Wait for DONE, or for a job that does not start again: FAILED alone may be followed by another start."""
        self.slurm.wait_until(lambda: self.run.done.exists() or self.ended_badly(), "DONE", 400)
        assert self.run.done.exists(), self.log()
        self.slurm.wait_for_state(self.job, "COMPLETED", 120)

    def ended_badly(self) -> bool:
        return self.slurm.job(self.job).get("JobState") in {"FAILED", "CANCELLED", "TIMEOUT"}

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.run.slurm.glob("*.out")))


@pytest.fixture
def queued(slurm, tmp_path: Path, small_betons: tuple[Path, Path]) -> Callable[..., Queued]:
    slurm.restore()
    write_config(tmp_path, small_betons)
    return lambda *words: Queued(slurm, tmp_path, *words)


def assert_equal_bits(run: RunDir, whole: RunDir) -> None:
    first, second = load_file(whole.weights), load_file(run.weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert numbers(run) == numbers(whole)


def test_timed_out_once_and_preempted_twice(slurm, queued, undisturbed) -> None:
    training = queued("cluster.time_minutes=1", "cluster.signal_seconds=50")
    again = training.launch()
    assert f"job {training.job} waits or runs" in again.stdout

    training.wait_for_restart(0)  # told to stop before the limit, saved, and queued itself again
    assert [end.failed for end in Restarts(training.run.slurm / "ends.jsonl").read()] == [False]
    training.update("TimeLimit=30")
    training.attempt = training.run.last_attempt()  # on a busy machine the first start may not have got so far

    for partition in ("low0", "low"):  # the first time with 20 s of grace, then with none
        training.wait_for_a_checkpoint()
        before = training.restarts()
        high = slurm.submit("-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
        training.wait_for_restart(before)
        training.update(f"Partition={partition}")
        slurm.wait_for_state(high, "COMPLETED", 120)

    training.wait_until_done()
    assert_equal_bits(training.run, undisturbed())
    last = training.run.last_attempt()
    assert last >= 3
    assert all(training.run.rank_log(n, rank).exists() for n in range(1, last + 1) for rank in (0, 1))
    assert not training.run.failed.exists()
    assert "done" in training.launch().stdout


def test_a_killed_rank_a_dead_node_a_cut_link_and_an_administrator(slurm, queued, undisturbed) -> None:
    training = queued("engine.timeout_minutes=2.5", "train.stall_minutes=2")
    training.wait_for_a_checkpoint()
    for pid in ranks_of_job(slurm.facts["slurm_conf"], training.job, rank=1):
        os.kill(pid, signal.SIGKILL)
    training.wait_for_restart(0)
    assert [end.code for end in Restarts(training.run.slurm / "ends.jsonl").read()] == [128 + signal.SIGKILL]

    training.wait_for_a_checkpoint()
    before = training.restarts()
    slurm.stop_node("n2", hard=True)
    training.wait_for_restart(before)
    slurm.start_node("n2")

    training.wait_for_a_checkpoint()
    before = training.restarts()
    slurm.cut()
    training.wait_for_restart(before)
    slurm.mend()

    for request in (["scontrol", "requeue", training.job], ["scancel", "--signal=USR2", training.job]):
        training.wait_for_a_checkpoint()
        before = training.restarts()
        slurm.run(request)
        training.wait_for_restart(before)

    training.wait_until_done()
    assert_equal_bits(training.run, undisturbed())


def test_preempted_where_slurm_requeues_nothing_and_cancelled(slurm, queued) -> None:
    """PreemptMode=CANCEL: a job that saves within KillWait asks for another start itself; scancel is for good."""
    slurm.run(["scontrol", "update", "partition=low0", "PreemptMode=CANCEL"])
    try:
        training = queued("cluster.partition=low0")
        training.wait_for_a_checkpoint()
        high = slurm.submit("-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
        training.wait_for_restart(0)
        slurm.wait_for_state(high, "COMPLETED", 120)
        training.wait_for_a_checkpoint()
        slurm.run(["scancel", training.job])
        assert slurm.wait_for_state(training.job, {"CANCELLED", "PENDING"}, 60) == "CANCELLED"
        assert training.restarts() == 1
    finally:
        slurm.run(["scontrol", "update", "partition=low0", "PreemptMode=REQUEUE"])
