"""Of two attempts at once, as where Slurm has lost a node and started its job elsewhere, the later one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.errors import LockedError
from kapdist.run.files import lines_in
from kapdist.run.paths import RunDir
from kapdist.train import loop
from kapdist.train.metrics import MetricsLog


@pytest.mark.parametrize(("begun_at", "newest"), [(5, 5), (14, 10)])
def test_an_attempt_that_was_overtaken_writes_neither_checkpoints_nor_done(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, begun_at: int, newest: int
) -> None:
    """The other begins in the middle, or after the last step and before the weights are written."""
    monkeypatch.chdir(tiny_config.parent)
    words = ["train.checkpoint_every_steps=5", "train.evaluate_every_epochs=100"]
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    take_step = loop.train_step

    def overtaken(job: Any, batches: Any, step: int, **more: Any) -> Any:
        if step == begun_at:
            job.saver.wait()
            run.rank_log(2, 0).parent.mkdir(exist_ok=True)
        return take_step(job, batches, step, **more)

    export = loop.exported

    def overtaken_at_the_end(job: Any) -> Any:
        if begun_at == job.plan.total_steps:
            run.rank_log(2, 0).parent.mkdir(exist_ok=True)
        return export(job)

    monkeypatch.setattr(loop, "train_step", overtaken)
    monkeypatch.setattr(loop, "exported", overtaken_at_the_end)
    with pytest.raises(LockedError, match="expected attempt 1 to be the last, found attempt 2, begun since"):
        loop.train(load_config(Config, tiny_config, words))
    assert run.newest_step() == newest
    assert not any(path.exists() for path in (run.done, run.failed, run.weights, run.lock))


def test_what_an_attempt_that_was_overtaken_finds_is_not_the_run_s(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights would lie in the place of the best ones, though the other's metrics do not know of them."""
    monkeypatch.chdir(tiny_config.parent)
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    take_step = loop.train_step

    def overtaken(job: Any, batches: Any, step: int, **more: Any) -> Any:
        if step == 3:
            run.rank_log(2, 0).parent.mkdir()
        return take_step(job, batches, step, **more)

    monkeypatch.setattr(loop, "train_step", overtaken)
    with pytest.raises(LockedError, match="attempt 2, begun since"):
        loop.train(load_config(Config, tiny_config))
    assert not run.best_weights.exists()
    assert all(entry["kind"] == "train" for entry in lines_in(run.metrics))


def test_the_attempt_that_goes_on_has_metrics_that_the_other_does_not_write_to(tmp_path: Path) -> None:
    """Also where there is nothing that it would forget of them."""
    run = RunDir(tmp_path)
    with MetricsLog(run, 0, 10, active=True) as lost:
        lost.write("train", 2, loss=1.0)
        with MetricsLog(run, 2, 10, active=True) as goes_on:
            lost.write("train", 4, loss=0.5)
            goes_on.write("train", 4, loss=0.4)
    assert [(line["step"], line["loss"]) for line in lines_in(run.metrics)] == [(2, 1.0), (4, 0.4)]


def test_what_ends_an_attempt_that_was_overtaken_is_no_failure_of_the_run(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_config.parent)
    run = RunDir(tiny_config.parent / "runs" / "tiny")

    def lost(*_: Any, **__: Any) -> Any:
        run.rank_log(2, 0).parent.mkdir()
        raise RuntimeError("the link is cut")

    monkeypatch.setattr(loop, "train_step", lost)
    with pytest.raises(RuntimeError, match="the link is cut"):
        loop.train(load_config(Config, tiny_config))
    assert not run.failed.exists()
