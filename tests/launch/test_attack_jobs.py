"""The jobs of an attack: what waits for what, what is taken back, what is done. Slurm is played by a list."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from queued import Queue
from races import Baton

from kapdist.config import AttackConfig, Config
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.run import lock as lock_module
from kapdist.run.files import write_atomic, write_json
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir, RunDir
from launch import aggregate as aggregation
from launch import jobs
from launch.after import CLUSTER, Start, conclude, shard_failed
from launch.array import AttackJobs
from launch.attack import AttackCommand, summary_set_aside, trainings_to_wait_for
from launch.cluster import ClusterConfig
from launch.planned import ATTACK, is_planned, is_planned_as_submitted, refuse_another, remember_plan
from launch.status.slurm import Answers
from launch.submission import Submission
from launch.train import TrainCommand

CONFIG = AttackConfig(name="a", chunk_size=8)


@pytest.fixture
def attack(tmp_path: Path) -> AttackDir:
    """An attack of 40 images in 5 chunks, planned."""
    attack = RunDir(tmp_path / "x").attack("a")
    write_json(attack.plan, {"images": list(range(40)), "chunk_size": 8})
    attack.chunks.mkdir()
    write_atomic(attack.slurm / ATTACK, dump_config(CONFIG))
    remember_plan(attack, attack.slurm / ATTACK)
    return attack


def jobs_of(attack: AttackDir, **cluster: Any) -> AttackJobs:
    return AttackJobs(RunDir(attack.root.parents[1]), attack, ClusterConfig(**cluster), Path("/code"))


def dependencies(queue: Queue) -> list[str | None]:
    return [what.parameters["additional_parameters"].get("dependency") for what in queue.taken]


def test_small_arrays_keep_to_the_shards_that_may_run_at_one_time(attack: AttackDir, queue: Queue) -> None:
    jobs_of(attack, max_array_size=1, shards_at_once=2).submit([0, 1, 2, 3, 4], 5, with_plan=True)
    singles = ["afterok:1", "afterok:1", "afterok:1,afterany:2", "afterok:1,afterany:3", "afterok:1,afterany:4"]
    assert dependencies(queue) == [None, *singles, "afterany:2:3:4:5:6"]
    assert queue.kinds == ["plan", *["shards"] * 5, "aggregate"]

    queue.taken.clear()
    jobs_of(attack, max_array_size=3, shards_at_once=7).submit([0, 1, 2, 3, 4], 5, with_plan=False)
    assert dependencies(queue) == [None, None, "afterany:1:2"]
    assert [what.parameters["array_parallelism"] for what in queue.taken[:2]] == [3, 3]


@pytest.mark.parametrize(("refuses", "taken"), [("plan", []), ("shards", ["1"]), ("aggregate", ["1", "2"])])
def test_an_attack_that_is_refused_half_way_leaves_no_job(
    attack: AttackDir, queue: Queue, refuses: str, taken: list[str]
) -> None:
    queue.refuses = refuses
    with pytest.raises(InputError) as error:
        jobs_of(attack).submit([0, 1], 2, with_plan=True)
    assert queue.cancelled == taken
    assert (f"job {', '.join(taken)}, queued before it, is cancelled" in str(error.value)) == bool(taken)


def test_a_chain_that_was_cut_off_is_queued_anew(
    attack: AttackDir, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever queued it died before the aggregation, which waits for all."""
    command = AttackCommand(RunDir(attack.root.parents[1]), CONFIG, ClusterConfig())
    left = [jobs_of(attack).plan(), jobs_of(attack).array([0], 1, 1, "1", "")]
    for number, what in enumerate(left):
        jobs.remember(attack.slurm, str(number + 1), what)
        queue.cancelled.clear()
        assert command.is_needed(force=False)
        assert queue.cancelled == ["1", "2"][: number + 1]
    jobs.remember(attack.slurm, "3", jobs_of(attack).aggregation(["2"]))
    assert not command.is_needed(force=False)
    assert "job 1, 2, 3 waits or runs" in capsys.readouterr().out
    # The aggregation runs and is about to queue what is missing once more.
    jobs.remember(attack.slurm, "4", left[1])
    assert not command.is_needed(force=False)


# Done, and not


def aggregate_line(attack: AttackDir, queue: Queue, *, more: bool = False) -> None:
    """Write that job 1 aggregates, and perhaps that another does after it."""
    what = jobs_of(attack).aggregation(["0"])
    for job in ("1", "2")[: 1 + more]:
        jobs.remember(attack.slurm, job, what)


def test_an_aggregation_that_was_stopped_is_not_done(attack: AttackDir, queue: Queue) -> None:
    aggregate_line(attack, queue)
    start, cluster = Start("aggregate", attack.root, "1"), ClusterConfig()
    assert conclude(start, 0, cluster) == ("again", 0)
    write_json(attack.summary, {})
    assert conclude(start, 0, cluster) == ("again", 0)  # between the sum and the report
    write_atomic(attack.root / "report" / "index.html", "")
    assert conclude(start, 0, cluster) == ("done", 0)


def test_an_aggregation_that_queued_another_is_done(attack: AttackDir, queue: Queue) -> None:
    aggregate_line(attack, queue, more=True)
    assert conclude(Start("aggregate", attack.root, "1"), 0, ClusterConfig()) == ("done", 0)
    assert conclude(Start("aggregate", attack.root, "2"), 0, ClusterConfig()) == ("again", 0)


def test_a_plan_of_before_is_not_the_plan_that_was_stopped(attack: AttackDir) -> None:
    assert is_planned_as_submitted(attack)
    assert conclude(Start("plan", attack.root, "1"), 0, ClusterConfig()) == ("done", 0)
    write_atomic(attack.slurm / ATTACK, dump_config(CONFIG.model_copy(update={"seed": 1})))
    assert conclude(Start("plan", attack.root, "1"), 0, ClusterConfig()) == ("again", 0)
    assert conclude(Start("plan", attack.root, "1"), 2, ClusterConfig()) == ("give up", 2)


# Cancelled


@pytest.mark.parametrize(
    ("answers", "marker", "log", "cancelled"),
    [
        (Answers({"7_0": ("CANCELLED", "None")}), "", True, True),
        (Answers({}, {"7_0": "CANCELLED"}), "", True, True),
        (Answers({}), "cancelled (job 7_0)", True, True),  # by its last word; Slurm has forgotten it
        (Answers({}), "", False, True),  # it never started
        (Answers({}), "", True, False),
        (Answers({}), "3 failures in a row", True, False),
        (Answers({}, {"7_0": "FAILED"}), "", True, False),
        (Answers({"7_0": ("NODE_FAIL", "None")}), "", True, False),
        (Answers(None), "", False, False),  # Slurm is silent
    ],
)
def test_whether_a_shard_was_cancelled(
    attack: AttackDir, answers: Answers, marker: str, log: bool, cancelled: bool
) -> None:
    if marker:
        write_atomic(shard_failed(attack, 0), marker)
    if log:
        write_atomic(attack.slurm / "7_0_0_log.out", "")
    assert aggregation.was_cancelled(attack, 0, "7_0", answers) == cancelled


def submitted(attack: AttackDir, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> str:
    """Submit five shards in two arrays; this process is then the aggregation, whose number is returned."""
    write_atomic(attack.slurm / CLUSTER, dump_config(ClusterConfig()))
    jobs_of(attack, max_array_size=3).submit([0, 1, 2, 3, 4], 5, with_plan=False)
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for key in ("1_0", "1_1", "1_2", "2_0", "2_1"):
        write_atomic(attack.slurm / f"{key}_0_log.out", "")
    return "3"


def test_nothing_is_queued_again_where_a_shard_was_cancelled(
    attack: AttackDir, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(attack, queue, monkeypatch)
    before = len(queue.taken)
    answers = Answers({"1_0": ("FAILED", "None"), "2_1": ("CANCELLED", "None")})
    monkeypatch.setattr(aggregation, "ask_slurm", lambda *_: answers)
    attack.chunk(1).write_bytes(b"PAR1 as a whole one ends PAR1")
    with pytest.raises(InputError, match=r"shard 4 without 1 chunks \(the first is 4\): cancelled \(job 2_1\)"):
        aggregation.aggregate(RunDir(attack.root.parents[1]), attack, 0)
    assert len(queue.taken) == before
    assert "cancelled (job 2_1)" in attack.failed.read_text()
    assert "shard 1 " not in attack.failed.read_text()


def test_shards_that_failed_are_queued_again_once(
    attack: AttackDir, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = submitted(attack, queue, monkeypatch)
    monkeypatch.setattr(aggregation, "ask_slurm", lambda *_: Answers({}))
    write_atomic(shard_failed(attack, 0), "3 failures\n")
    # An earlier start of this job got as far as the array.
    left = jobs.remember(attack.slurm, "4", jobs_of(attack).array([0], 5, 1, "", ""))
    aggregation.aggregate(RunDir(attack.root.parents[1]), attack, 0)
    assert queue.cancelled == [left["job"]]
    assert queue.kinds[3:] == ["shards", "aggregate"]
    assert not shard_failed(attack, 0).exists()
    aggregation.aggregate(RunDir(attack.root.parents[1]), attack, 0)  # started twice
    assert queue.kinds[5:] == []
    assert jobs.queued_after(attack.slurm, mine)[-1]["kind"] == "aggregate"


@pytest.mark.parametrize("seed", range(3))
def test_an_aggregation_that_runs_twice_at_once_queues_once(
    attack: AttackDir, queue: Queue, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its node was cut off, and Slurm started it on another."""
    submitted(attack, queue, monkeypatch)
    monkeypatch.setattr(aggregation, "ask_slurm", lambda *_: Answers({}))
    monkeypatch.setattr(lock_module, "POLL_SECONDS", 0)
    baton, run = Baton(random.Random(seed)), RunDir(attack.root.parents[1])
    with monkeypatch.context() as patch:
        baton.watch(patch)
        assert baton.run([lambda: aggregation.aggregate(run, attack, 0)] * 3) == []
    assert queue.kinds[3:] == ["shards", "aggregate"]


# Another config, a run that trains, --force


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, ""),
        ({"seed": 1}, "seed = 0"),
        ({"eps": (2 / 255, 4 / 255)}, "eps = "),
        ({"num_images": 0}, "num_images = None"),
        ({"version": "custom", "attacks": ("square",)}, "version = 'standard'"),
        ({"num_shards": 3, "timeout_minutes": 5.0, "device": "cpu", "threads": 2}, ""),
        ({"rescore": 3, "random_draws": 5}, ""),  # of noisy models, of another attack
    ],
)
def test_another_config_is_refused_by_its_first_key(attack: AttackDir, changes: dict[str, Any], key: str) -> None:
    other = CONFIG.model_copy(update=changes)
    assert is_planned(attack, other) == (not changes)
    if not key:
        refuse_another(attack, other)
        return
    with pytest.raises(InputError) as error:
        refuse_another(attack, other)
    assert f"expected {key}" in str(error.value)
    assert "as this attack was planned (or another name=)" in str(error.value)


def test_a_plan_made_by_hand_tells_what_it_can(tmp_path: Path) -> None:
    attack = AttackDir(tmp_path)
    refuse_another(attack, CONFIG)
    plan = json.loads(CONFIG.model_dump_json())
    write_json(attack.plan, plan | {"eps": 4 / 255, "smaller_eps": [2 / 255], "images": [1, 2]})
    assert not is_planned(attack, CONFIG)
    refuse_another(attack, CONFIG.model_copy(update={"eps": (2 / 255, 4 / 255)}))
    with pytest.raises(InputError, match="eps = "):
        refuse_another(attack, CONFIG)


def test_what_an_attack_waits_for(tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "x")
    with pytest.raises(InputError, match="a run directory"):
        trainings_to_wait_for(run, CONFIG)
    write_atomic(run.config, "name: x\ndata: {train: a, validation: b}\nmodel: {num_classes: 10}\n")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        trainings_to_wait_for(run, CONFIG)
    with (
        locked(run.launcher),
        pytest.raises(InputError, match=f"a job to wait for, found process {os.getpid()}"),
    ):
        trainings_to_wait_for(run, CONFIG)
    jobs.remember(run.slurm, "7", Submission(run.slurm, {"job_name": "x"}, "python", about={"kind": "train"}))
    assert trainings_to_wait_for(run, CONFIG) == ["7"]
    write_atomic(run.done, "{}")
    assert trainings_to_wait_for(run, CONFIG) == []
    for words, jobs_of_it in (([str(run.root)], ["7"]), (["m:f", {"run": run.root, "weights": "w"}], [])):
        run.done.unlink(missing_ok=True)
        others = {"name": "x", "model": {"factory": "m:f"}, "attacks": ["transfer"], "transfer_from": words}
        assert trainings_to_wait_for(run, AttackConfig.model_validate(others)) == jobs_of_it

    waiting = AttackJobs(run, run.attack("a"), ClusterConfig(), Path("/code"), ["7"])
    assert "plan 1 after job 7" in waiting.submit([0], 1, with_plan=True)
    assert dependencies(queue)[0] == "afterok:7"
    assert queue.taken[0].parameters["additional_parameters"]["kill-on-invalid-dep"] == "yes"


def refuse(attack: AttackDir) -> None:
    assert not attack.summary.exists()
    raise InputError("sbatch", "a job", "none")


def test_force_merges_anew(attack: AttackDir, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(attack.summary, {"num_images": 40})
    write_atomic(attack.root / "report" / "index.html", "")
    command = AttackCommand(RunDir(attack.root.parents[1]), CONFIG, ClusterConfig())
    assert not command.is_needed(force=False)
    assert "--force" in capsys.readouterr().out
    assert command.is_needed(force=True)
    with pytest.raises(InputError), summary_set_aside(attack):
        refuse(attack)
    assert attack.summary.exists()
    for number in (1, 2):
        write_json(attack.summary, {"number": number})
        with summary_set_aside(attack):
            pass
        assert not attack.summary.exists()
        assert json.loads((attack.slurm / "merged" / str(number) / "summary.json").read_text())["number"] == number
    with summary_set_aside(attack):
        pass
    shutil.rmtree(attack.slurm / "merged" / "1")  # what is kept stays
    write_json(attack.summary, {"number": 3})
    with summary_set_aside(attack):
        pass
    for number in (2, 3):
        assert json.loads((attack.slurm / "merged" / str(number) / "summary.json").read_text())["number"] == number


def test_a_finished_run_of_another_config_is_refused(tiny_config: Path, queue: Queue) -> None:
    config = load_config(Config, tiny_config)
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    write_atomic(run.config, dump_config(config))
    write_atomic(run.done, "{}")
    assert not TrainCommand(run, config, ClusterConfig()).is_needed(force=False)
    for force in (False, True):
        with pytest.raises(InputError, match="seed = 0 as this run began"):
            TrainCommand(run, config.model_copy(update={"seed": 5}), ClusterConfig()).is_needed(force)
    assert TrainCommand(run, config, ClusterConfig()).is_needed(force=True)
    assert run.done.exists()
