"""A queued attack: shards that fail, die and are preempted; nothing is lost, doubled or done twice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import polars as pl
import pytest
from processes import ranks_of_job, warm_python

from kapdist.records.sharding import finished_chunks
from kapdist.run.paths import AttackDir, RunDir

ROOT = Path(__file__).parents[2]
ATTACK = """
num_images: 64
chunk_size: 8
eps: 8/255
version: custom
attacks: [apgd-ce]
threads: 1
"""
CLUSTER = [
    "cluster.partition=low",
    "cluster.shards=4",
    "cluster.shards_at_once=2",
    "cluster.max_array_size=3",
    "cluster.max_failures=1",
    "cluster.shard_retries=1",
]


@pytest.fixture
def trained(tiny_config: Path, kapdist) -> RunDir:
    """A run to attack."""
    ended = kapdist("train", tiny_config)
    assert ended.code == 0, ended.output
    (tiny_config.parent / "quick.yaml").write_text(ATTACK)
    return RunDir(tiny_config.parent / "runs" / "tiny")


def launch(slurm, run: RunDir, *words: str, check: bool = True):
    warm = f"cluster.python={warm_python()}"
    command = [warm_python(), ROOT / "launch" / "attack.py", run.root, "quick.yaml", *CLUSTER, warm, *words]
    return slurm.run(command, cwd=run.root.parents[1], check=check)


def lines(attack: AttackDir, kind: str) -> list[dict]:
    text = (attack.slurm / "jobs.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def test_a_bad_shard_a_killed_one_and_a_preempted_one(slurm, trained: RunDir) -> None:
    slurm.restore()
    attack = trained.attack("quick")
    obstacle = attack.chunk(3)  # nothing can be written where a directory is
    (obstacle / "in the way").mkdir(parents=True)
    launch(slurm, trained)
    assert "waits or runs" in launch(slurm, trained).stdout
    arrays = [line["job"] for line in lines(attack, "shards")]
    assert [line["shards"] for line in lines(attack, "shards")] == [[0, 1, 2], [3]]

    slurm.wait_until(lambda: slurm.job(f"{arrays[0]}_1").get("JobState") == "RUNNING", "shard 1", 240)
    first = slurm.job(f"{arrays[0]}_1")["JobId"]
    slurm.wait_until(lambda: bool(finished_chunks(attack) & {1, 5}), "one of the two chunks of shard 1", 240)
    os.kill(ranks_of_job(slurm.facts["slurm_conf"], first)[0], signal.SIGKILL)
    slurm.submit("-p", "high", "-w", "n1", "--exclusive", "--wrap", "sleep 1")

    slurm.wait_until(lambda: attack.failed.exists(), "the verdict of the aggregation", 480)
    last = lines(attack, "aggregate")[-1]["job"]
    assert slurm.wait_for_state(last, {"COMPLETED", "FAILED"}) == "FAILED"
    reason = attack.failed.read_text()
    assert "shard 3 without 2 chunks" in reason
    assert "shard 0" not in reason
    assert not attack.summary.exists()
    assert finished_chunks(attack) == {0, 1, 2, 4, 5, 6}
    assert len(lines(attack, "aggregate")) == 2

    before = {chunk: attack.chunk(chunk).stat().st_mtime_ns for chunk in finished_chunks(attack)}
    (obstacle / "in the way").rmdir()
    obstacle.rmdir()
    assert "1 shards" in launch(slurm, trained).stdout
    slurm.wait_until(lambda: attack.summary.exists() or attack.failed.exists(), "the summary", 240)
    assert not attack.failed.exists(), attack.failed.read_text()
    assert {chunk: attack.chunk(chunk).stat().st_mtime_ns for chunk in before} == before
    assert json.loads(attack.summary.read_text())["num_images"] == 64
    assert pl.read_parquet(attack.records)["image"].is_unique().all()
    slurm.wait_until(lambda: (attack.root / "report" / "index.html").exists(), "the report", 120)
    assert "done" in launch(slurm, trained).stdout


def test_a_cancelled_array_stays_cancelled_and_the_attack_waits_for_its_training(
    slurm, tiny_config: Path, tmp_path: Path
) -> None:
    slurm.restore()
    (tmp_path / "quick.yaml").write_text(ATTACK)
    run = RunDir(tmp_path / "runs" / "tiny")
    attack = run.attack("quick")
    nothing = launch(slurm, run, check=False)
    assert nothing.returncode == 2
    assert "expected a run directory, found nothing" in nothing.stderr
    assert not run.root.exists()

    words = [tiny_config, "train.epochs=1", "cluster.sbatch={hold: true}", f"cluster.python={warm_python()}"]
    slurm.run([warm_python(), ROOT / "launch" / "train.py", *words], cwd=tmp_path)
    training = json.loads((run.slurm / "jobs.jsonl").read_text())["job"]
    refused = launch(slurm, run, "cluster.aggregate.sbatch={begin: nonsense}", check=False)
    assert refused.returncode == 2
    assert "queued before it, is cancelled" in refused.stderr
    assert slurm.run(["squeue", "-h", "-o", "%A"]).stdout.split() == [training]

    assert f"after job {training}, 4 shards" in launch(slurm, run).stdout
    slurm.run(["scontrol", "release", training])
    arrays = [line["job"] for line in lines(attack, "shards")][-2:]
    slurm.wait_until(lambda: slurm.job(f"{arrays[0]}_0").get("JobState") == "RUNNING", "shard 0", 400)
    assert run.done.exists()
    slurm.run(["scancel", *arrays])  # one shard or two run, the others wait
    slurm.wait_until(attack.failed.exists, "the verdict of the aggregation", 240)
    reason = attack.failed.read_text()
    assert all(f"shard {shard} without 2 chunks" in reason for shard in (2, 3))
    assert reason.count("cancelled (job ") == reason.count(" without ")
    assert [line["job"] for line in lines(attack, "shards")][-2:] == arrays
    slurm.wait_until(lambda: not slurm.run(["squeue", "-h"]).stdout.strip(), "the queue is empty", 60)
