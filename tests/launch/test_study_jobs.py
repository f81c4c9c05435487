"""The jobs of a study; Slurm is played by a list."""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import pytest
from queued import Queue
from races import Baton

from kapdist.records.study import read_frozen
from kapdist.run import lock as lock_module
from kapdist.study.design import make_design
from kapdist.study.frozen import freeze
from kapdist.study.tasks import tasks
from launch import jobs, slurm
from launch.cluster import ClusterConfig
from launch.command import submit
from launch.study import StudyCommand
from launch.train import TrainCommand

BASE = "data: {train: train.beton, validation: test.beton}\nmodel: {name: resnet10, num_classes: 10, width: 0.25}\n"
STUDY = (
    "{train: base.yaml, seeds: 1, arms: {a: {}, b: {kap.noise_std: 0.1}}, attacks: {s: {}}, studies_dir: studies}"
)


def test_a_claim_of_what_is_there_already_needs_the_page_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("mine.yaml").write_text(STUDY)
    monkeypatch.setattr("launch.study.snapshot", lambda *_: tmp_path)
    monkeypatch.setattr(slurm, "max_array_size", lambda: 1001)
    design = make_design(Path("mine.yaml"))
    freeze(design)
    design.dir.finished.parent.mkdir(parents=True)
    for path in (design.dir.finished, *(task.result for task in tasks(design))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    how = argparse.Namespace(dry_run=False, force=False)
    submit(StudyCommand(design, ClusterConfig()), how)
    assert "done: " in capsys.readouterr().out
    claim = "b over a, clean accuracy"
    submit(StudyCommand(make_design(Path("mine.yaml"), [f"claims=['{claim}']"]), ClusterConfig()), how)
    assert queue.kinds == ["study"]
    assert read_frozen(design.dir.frozen).later == (claim,)
    assert not design.dir.finished.exists()


@pytest.mark.parametrize("seed", [3, 8, 14])
def test_a_study_and_a_training_of_it_at_once_queue_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("mine.yaml").write_text(STUDY)
    monkeypatch.setattr(slurm, "max_array_size", lambda: 1001)
    monkeypatch.setattr(lock_module, "POLL_SECONDS", 0)
    for module in ("study", "train"):
        monkeypatch.setattr(f"launch.{module}.snapshot", lambda *_: tmp_path)
    whole = StudyCommand(make_design(Path("mine.yaml")), ClusterConfig())
    runs = whole.runs(whole.design.trained)
    one = TrainCommand(runs[1], whole.design.trained[1].config, ClusterConfig())
    how = argparse.Namespace(dry_run=False, force=False)
    baton = Baton(random.Random(seed))

    def late() -> None:
        for _ in range(random.Random(seed).randrange(400)):  # a study has more to look at
            tmp_path.exists()
        submit(one, how)

    with monkeypatch.context() as patch:
        baton.watch(patch)
        assert baton.run([partial(submit, whole, how), partial(submit, whole, how), late]) == []
    lines = [[line["kind"] for line in jobs.remembered(run.slurm)] for run in runs]
    assert [kinds.count("train") for kinds in lines] == [1, 1]
    assert [kinds.count("model") for kinds in lines] == [1, 1]
    assert queue.kinds.count("study") == 1
