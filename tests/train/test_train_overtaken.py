"""Of two attempts at once, as where Slurm has lost a node and started its job elsewhere, the later one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.errors import LockedError
from kapdist.run.paths import RunDir
from kapdist.train import loop


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
