"""A queued study: an arm that always fails, a job that is preempted, and one page at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import warm_python

from kapdist.records.study import StudyResults
from kapdist.run.paths import StudyDir
from launch.jobs import remembered

ROOT = Path(__file__).parents[2]
STUDY = """
train: tiny.yaml
seeds: 2
arms:
  plain: {kap.pool_size: 1, kap.noise_std: 0, train.epochs: 4, train.checkpoint_every_steps: 3}
  noise: {kap.pool_size: 1, train.epochs: 1, seeds: 1}
  broken: {kap.pool_size: 1, data.train: nowhere.beton, seeds: 1}
attacks:
  quick:
    {version: custom, attacks: [random-noise], random_draws: 3, eps: 8/255, num_images: 40, arms: [plain, broken]}
  loud: {version: custom, attacks: [random-noise], random_draws: 2, eps: 1/255, num_images: 20, arms: [noise]}
claims:
  - broken over plain, clean accuracy
  - plain over broken, robust accuracy at 8/255
"""


@pytest.mark.slow
def test_a_study_ends_with_its_page_whatever_befell_it(slurm, tmp_path: Path, tiny_config: Path) -> None:
    slurm.restore()
    (tmp_path / "mine.yaml").write_text(STUDY)
    cluster = [
        "cluster.partition=low0",
        "cluster.max_failures=1",
        "cluster.memory_gb=0",
        f"cluster.python={warm_python()}",
    ]
    words = [warm_python(), ROOT / "launch" / "study.py", "mine.yaml", *cluster]
    said = slurm.run(words, cwd=tmp_path, timeout=180).stdout
    study = StudyDir(tmp_path / "studies" / "mine")
    trainings, models, page = remembered(study.slurm)
    assert f"{study.root}: 4 models in job {models['job']}, then job {page['job']}" in said
    assert (
        trainings["models"]
        == models["models"]
        == [f"{name}_seed0" for name in ("plain", "noise", "broken")] + ["plain_seed1"]
    )
    assert "waits or runs" in slurm.run(words, cwd=tmp_path).stdout

    preempted = study.run("plain_seed0")
    own = [line["job"] for line in remembered(preempted.slurm)]
    assert own == [f"{trainings['job']}_0", f"{models['job']}_0"]
    status = [warm_python(), ROOT / "launch" / "status.py", preempted.root, "--json"]
    (job,) = json.loads(slurm.run(status, cwd=tmp_path).stdout)["training"]["jobs"]
    assert (job["job"], sum(job["states"].values())) == (own[0], 1)
    slurm.wait_until(lambda: preempted.newest_step() > 0, "a checkpoint", 120)
    high = slurm.submit("-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
    slurm.wait_for_state(high, "COMPLETED", 120)

    slurm.wait_until(lambda: study.finished.exists() or study.failed.exists(), "the page", 400)
    assert not study.failed.exists(), study.failed.read_text()
    found = StudyResults.model_validate_json(study.results.read_text())
    assert found.missing == ("broken_seed0/train", "broken_seed0/attack/quick")
    assert preempted.last_attempt() >= 1
    assert {(row.setting, row.attack, row.seeds) for row in found.rows} == {
        ("plain", "quick", (0, 1)),
        ("noise", "loud", (0,)),
    }
    assert [(one.verdict, one.why) for one in found.decisions] == [
        ("not decided", "broken under quick has no result for seed 0")
    ] * 2
    assert "nowhere.beton" in study.run("broken_seed0").failed.read_text()
    assert not (study.run("broken_seed0").slurm / "ends" / "model.jsonl").exists()  # nobody asked it anything

    (study.run("plain_seed1").attack("quick").summary).unlink()
    slurm.wait_for_state(page["job"], "COMPLETED", 60)  # the page is there before its job is gone
    again = slurm.run(words, cwd=tmp_path, timeout=180).stdout
    trainings, models, others, page = remembered(study.slurm)[3:]
    assert (trainings["models"], others["models"]) == (["broken_seed0"], ["plain_seed1"])
    assert f"2 models in job {models['job']}, {others['job']}, then job {page['job']}" in again
    slurm.wait_until(lambda: study.finished.exists(), "the page again", 200)
    assert study.run("plain_seed1").attack("quick").summary.exists()
    status = [warm_python(), ROOT / "launch" / "status.py", study.root, "--json"]
    slurm.wait_until(lambda: json.loads(slurm.run(status, cwd=tmp_path).stdout)["ended"], "the last job's end", 60)
    seen = json.loads(slurm.run(status, cwd=tmp_path).stdout)
    assert (seen["study"]["done"], seen["study"]["commands"]) == (6, 8)
    assert [job["job"] for job in seen["jobs"]] == [page["job"]]
    assert [cell["run"] for row in seen["study"]["settings"] for cell in row["cells"] if cell["failed"]] == [
        "broken_seed0"
    ]


SHARDED = """
train: tiny.yaml
seeds: 1
arms: {noise: {kap.pool_size: 1, train.epochs: 1}}
attacks:
  loud: {version: custom, attacks: [random-noise], random_draws: 2, eps: 1/255, num_images: 20, chunk_size: 10}
topography: {images: 4, permutations: 199}
"""


@pytest.mark.slow
def test_attacks_in_shards_have_jobs_of_their_own(slurm, tmp_path: Path, tiny_config: Path) -> None:
    slurm.restore()
    (tmp_path / "mine.yaml").write_text(SHARDED)
    cluster = ["cluster.partition=low0", "cluster.shards=2", f"cluster.python={warm_python()}"]
    slurm.run([warm_python(), ROOT / "launch" / "study.py", "mine.yaml", *cluster], cwd=tmp_path, timeout=180)
    study = StudyDir(tmp_path / "studies" / "mine")
    slurm.wait_until(lambda: study.finished.exists() or study.failed.exists(), "the page", 300)
    found = StudyResults.model_validate_json(study.results.read_text())
    assert (found.missing, found.num_done) == ((), 3)
    run = study.run("noise_seed0")
    assert [line["kind"] for line in remembered(run.attack("loud").slurm)] == ["plan", "shards", "aggregate"]
    assert [line["kind"] for line in remembered(study.slurm)] == ["train", "model", "study"]
