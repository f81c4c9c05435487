"""One command for several seeds and for the attacks that follow; Slurm is played by a list."""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path

import pytest
from queued import Queue
from races import Baton

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.run import lock as lock_module
from kapdist.run.files import write_atomic
from kapdist.run.paths import RunDir
from launch import attack, jobs, slurm, train
from launch.cluster import ClusterConfig
from launch.command import submit
from launch.train import SeedsCommand, TrainCommand, directory_of

QUICK = "{num_images: 16, chunk_size: 8, version: custom, attacks: [apgd-ce]}"


@pytest.fixture
def folder(tiny_config: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue) -> Path:
    """The folder of a config and two attacks; no code is copied."""
    for module in (train, attack):
        monkeypatch.setattr(module, "snapshot", lambda *_: Path("/code"))
    monkeypatch.setattr(slurm, "max_array_size", lambda: 1001)
    monkeypatch.chdir(tiny_config.parent)
    Path("quick.yaml").write_text(QUICK)
    Path("slow.yaml").write_text(QUICK.replace("ce", "dlr"))
    return tiny_config.parent


def launch(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["launch/train.py", "tiny.yaml", *words])
    train.main()


def dependencies(queue: Queue) -> list[str | None]:
    return [what.parameters["additional_parameters"].get("dependency") for what in queue.taken]


def test_attacks_follow_the_training_and_are_queued_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--then", "quick.yaml", "--then", "slow.yaml", "cluster.shards=2")
    launch(monkeypatch, *words)
    assert queue.kinds == ["train", *["plan", "shards", "aggregate"] * 2]
    assert dependencies(queue) == [
        None,
        *["afterok:1", "afterok:2", "afterany:3"],
        *["afterok:1", "afterok:5", "afterany:6"],
    ]
    assert "plan 2 after job 1, 2 shards in job 3, aggregation 4" in capsys.readouterr().out
    launch(monkeypatch, *words)
    assert len(queue.taken) == 7
    assert capsys.readouterr().out.count("waits or runs") == 3

    # The training has failed and its attacks were called off: the same command goes on with both.
    monkeypatch.setattr(slurm, "alive", lambda numbers, *_: [job for job in numbers if int(job) > 7])
    launch(monkeypatch, *words)
    assert queue.kinds[7:] == queue.kinds[:7]
    assert dependencies(queue)[8] == "afterok:8"

    # It is done, and one attack is: the other is queued, and waits for nothing.
    run = RunDir(folder / "runs" / "tiny")
    monkeypatch.setattr(slurm, "alive", lambda numbers, *_: [])
    write_atomic(run.done, "{}")
    write_atomic(run.attack("quick").summary, "{}")
    launch(monkeypatch, *words)
    assert queue.kinds[14:] == ["plan", "shards", "aggregate"]
    assert dependencies(queue)[14] is None


def test_each_seed_is_a_run_and_an_element_and_its_attack_follows_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(monkeypatch, "--seeds", "0,5,7", "--then", "quick.yaml")
    assert queue.kinds == ["train", *["plan", "shards", "aggregate"] * 3]
    assert queue.taken[0].elements == 3
    assert [dependencies(queue)[n] for n in (1, 4, 7)] == ["afterok:1_0", "afterok:1_1", "afterok:1_2"]
    run = RunDir(folder / "runs" / "tiny_seed5")
    assert (run.load_config().seed, run.load_config().name) == (5, "tiny_seed5")
    assert [line["job"] for line in jobs.remembered(run.slurm)] == ["1_1"]
    assert f"tiny_seeds: 3 trainings in job 1 (python launch/status.py {folder}" in capsys.readouterr().out

    # A run that is done is left out, and one that failed is queued again, alone and so as no array.
    monkeypatch.setattr(slurm, "alive", lambda numbers, *_: [job for job in numbers if job != "1_1"])
    write_atomic(RunDir(folder / "runs" / "tiny_seed0").done, "{}")
    before = len(queue.taken)
    launch(monkeypatch, "--seeds", "0,5,7")
    assert [(what.about["kind"], what.about["models"]) for what in queue.taken[before:]] == [
        ("train", ["tiny_seed5"])
    ]
    assert [line["job"] for line in jobs.remembered(run.slurm)] == ["1_1", str(before + 1)]


@pytest.mark.parametrize(
    ("words", "names"),
    [((), ["tiny"]), (("--seeds", "3", "cluster.max_array_size=2"), ["tiny_seed0", "tiny_seed1", "tiny_seed2"])],
)
def test_what_is_done_stays_done_where_it_cannot_be_queued_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, words: tuple[str, ...], names: list[str]
) -> None:
    launch(monkeypatch, *words)
    monkeypatch.setattr(slurm, "alive", lambda numbers, *_: [])
    runs = [RunDir(folder / "runs" / name) for name in names]
    for run in runs:
        write_atomic(run.done, "{}")
    before = len(queue.taken)
    for taken in range(before):  # with seeds the first array is taken and the second refused
        queue.most = before + taken
        with pytest.raises(InputError, match="a job that this cluster takes"):
            launch(monkeypatch, "--force", *words)
        assert [run.done.exists() for run in runs] == [place >= 2 * taken for place in range(len(runs))]
    queue.most = 1000
    launch(monkeypatch, "--force", *words)
    assert not any(run.done.exists() for run in runs)
    assert all((run.attempts / "0" / "DONE").exists() for run in runs)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_two_commands_want_at_once_is_queued_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, seed: int
) -> None:
    """One names it, the other has it among its seeds."""
    monkeypatch.setattr(lock_module, "POLL_SECONDS", 0)
    configs = [load_config(Config, folder / "tiny.yaml", [f"name=tiny_seed{n}", f"seed={n}"]) for n in (0, 1)]
    first, second = (TrainCommand(directory_of(config), config, ClusterConfig()) for config in configs)
    commands = [first, SeedsCommand((second, first), configs[0], ClusterConfig()), first]
    how = argparse.Namespace(dry_run=False, force=False)
    baton = Baton(random.Random(seed))
    with monkeypatch.context() as patch:
        baton.watch(patch)
        assert baton.run([partial(submit, command, how) for command in commands]) == []
    assert [len(jobs.remembered(one.directory.slurm)) for one in (first, second)] == [1, 1]


def test_a_dry_run_shows_the_whole_chain_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(monkeypatch, "--seeds", "2", "--then", "quick.yaml", "--dry-run")
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-1%2" in printed
    assert [line.partition("=")[2] for line in printed.splitlines() if "--dependency" in line] == [
        "afterok:TRAIN", "afterok:PLAN", "afterany:SHARDS"
    ] * 2  # fmt: skip
    assert queue.taken == []
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0"], "--seeds: expected how many seeds, 1 to 1000"),
        (["--seeds", "1,1"], "--seeds: expected each seed once, not 1 twice"),
        (["--seeds", "1,x"], "--seeds: expected a valid integer"),
        (["--seeds", "-1"], "--seeds: expected greater than or equal to 0"),
        (["--seeds", "2", "seed=3"], "--seeds: expected seeds here or in a word, not in both, found seed=3"),
        (["--seeds", "2", "--local"], "--seeds: expected jobs of Slurm's (no --local)"),
        (["--then", "quick.yaml", "--local"], "--then: expected jobs of Slurm's (no --local)"),
        (["--then", "nowhere.yaml"], "nowhere.yaml: expected a config file, found nothing"),
        (["--then", "quick.yaml", "--then", "quick.yaml"], "--then: expected attacks of different names"),
        (["--then", "other.yaml"], "other.yaml: expected an attack on what is trained, found model.factory=a:b"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_queued(
    folder: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, words: list[str], said: str
) -> None:
    Path("other.yaml").write_text("{model: {factory: a:b}}")
    with pytest.raises(InputError) as error:
        launch(monkeypatch, *words)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert queue.taken == []
    assert not (folder / "runs").exists()
