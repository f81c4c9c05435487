"""What `launch/status.py` says of jobs that a real Slurm holds, with accounting and without."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import warm_python

from kapdist.records.sharding import chunks_of
from kapdist.run.files import write_atomic, write_json
from kapdist.run.paths import AttackDir, RunDir
from launch.cluster import ClusterConfig
from launch.jobs import remember
from launch.submission import submission

STATUS = Path(__file__).parents[2] / "launch" / "status.py"


@pytest.fixture
def clean(slurm) -> Iterator[Any]:
    slurm.restore()
    yield slurm
    slurm.restore()


def queued(slurm, folder: Path, words: list[str], elements: int = 0, **about: Any) -> str:
    """Submit a job that sleeps, and write down what launch/ writes."""
    folder.mkdir(parents=True, exist_ok=True)
    job = slurm.submit(*words, "-p", "low", "-o", "/dev/null", cwd=folder)
    what = submission("name", folder, ClusterConfig(), folder, "launch.after", elements=elements, **about)
    remember(folder, job, what)
    return job


def status(slurm, root: Path, *before: str) -> dict[str, Any]:
    return json.loads(slurm.run([*before, warm_python(), STATUS, root, "--json"]).stdout)


def without_sacct(folder: Path) -> list[str]:
    """Return the words that run a command with all of PATH but sacct."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for tool in Path(place).glob("*"):
            if tool.name != "sacct" and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    return ["/usr/bin/env", f"PATH={folder}"]


def test_a_job_from_the_queue_to_its_end(clean, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "x")
    write_atomic(run.config, "name: x\n")
    bare = without_sacct(tmp_path / "tools")
    job = queued(clean, run.slurm, ["-N1", "--hold", "--wrap", "sleep 300"], kind="train")
    for before in ([], bare):
        found = status(clean, run.root, *before)
        assert found["verdict"] == {"state": "PENDING", "why": "JobHeldUser"}
        assert found["training"]["jobs"][0]["states"] == {"PENDING": 1}

    clean.run(["scontrol", "release", job])
    clean.wait_for_state(job, ["RUNNING"])
    for before in ([], bare):
        assert status(clean, run.root, *before)["verdict"] == {"state": "RUNNING", "why": f"job {job}"}

    clean.run(["scancel", job])
    clean.wait_for_state(job, ["CANCELLED"])
    clean.wait_until(lambda: status(clean, run.root)["verdict"]["state"] == "STOPPED", "it is seen to be stopped")
    assert status(clean, run.root)["verdict"]["why"] == f"not queued; job {job}: CANCELLED"
    assert status(clean, run.root, *bare)["verdict"]["state"] == "STOPPED"


def test_a_controller_that_hangs_leaves_the_word_to_accounting(clean, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "x")
    write_atomic(run.config, "name: x\n")
    job = queued(clean, run.slurm, ["-N1", "--hold", "--wrap", "sleep 300"], kind="train")
    accounts = ["sacct", "-nPX", "-j", job, "-o", "state"]
    clean.wait_until(lambda: clean.run(accounts).stdout.strip() == "PENDING", "sacct knows the job")
    controller = int((clean.directory / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        found = status(clean, run.root)
    finally:
        os.kill(controller, signal.SIGCONT)
    assert not found["slurm_answers"]
    assert found["verdict"]["state"] == "PENDING"


def test_the_shards_of_an_array(clean, tmp_path: Path) -> None:
    """One shard has finished, two run, one waits for the throttle, one failed."""
    directory = AttackDir(tmp_path / "attacks" / "a")
    write_json(directory.plan, {"images": list(range(10)), "chunk_size": 1})
    directory.chunks.mkdir()
    for chunk in chunks_of(10, 0, 5):
        directory.chunk(chunk).touch()
    script = "case $SLURM_ARRAY_TASK_ID in 0) exit 0;; 1) exit 3;; esac; exec sleep 300"
    words = ["--array=0-4%2", "--wrap", script]
    job = queued(clean, directory.slurm, words, 5, kind="shards", shards=[0, 4, 1, 2, 3], num_shards=5)

    def seen() -> dict[str, Any]:
        return status(clean, directory.root)["attacks"][0]

    clean.wait_until(lambda: (seen()["shards"]["running"], seen()["shards"]["failed"]) == (2, [4]), "two run")
    found = seen()
    assert found["verdict"] == {"state": "RUNNING", "why": f"shards, job {job}"}
    assert (found["shards"]["finished"], found["shards"]["waiting"], found["shards"]["missing"]) == (1, 1, [])
    assert found["jobs"][0]["reason"] == "JobArrayTaskLimit"
    assert found["shards"]["explained"][0]["reason"] == "FAILED"
