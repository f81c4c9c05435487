"""What is not finite replaces nothing: neither a checkpoint, nor the best weights, nor valid JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kapdist.engine import Ranks
from kapdist.models.build import build_model
from kapdist.models.weights import first_not_finite, load_weights
from kapdist.run.paths import RunDir
from kapdist.train import checkpoint


def test_the_first_value_that_is_not_finite_is_named() -> None:
    fine = {
        "a": [torch.ones(3), torch.arange(3)],
        "b": ({"c": 1.5}, None, "nan"),
        "d": torch.tensor([], dtype=torch.half),
    }
    assert first_not_finite(fine) is None
    assert first_not_finite(fine | {"e": {"f": (1, torch.tensor([0.0, float("nan")]))}}) == "e.f.1"
    assert first_not_finite({"scale": float("inf")}) == "scale"


@pytest.mark.parametrize("where", ["shared", "own"])
def test_a_checkpoint_that_is_not_finite_is_refused_and_the_others_stay(tmp_path: Path, where: str) -> None:
    run = RunDir(tmp_path)
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=1, timeout_seconds=10)
    saver.save(1, {"weights": torch.ones(3)}, {"meter": 1.0})
    worse = {"weights": torch.tensor([1, float("-inf")])} if where == "shared" else {"weights": torch.ones(2)}
    saver.save(2, worse, {"meter": float("nan") if where == "own" else 1.0})
    with pytest.raises(FloatingPointError, match=f"is not finite after step 2.*{run.checkpoint(1)}"):
        saver.wait()
    assert checkpoint.newest(run) == run.checkpoint(1)
    assert [path.name for path in run.checkpoints.iterdir() if path.is_dir()] == [run.checkpoint(1).name]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_diverges_ends_and_can_be_gone_on_from(tiny_config: Path, run_ranks, world_size: int) -> None:
    words = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.checkpoint_every_steps=1"]
    worse = [*words, "train.log_every_steps=20", "optim.lr=1e6"]
    ends = run_ranks(worse, world_size)
    assert {end.code for end in ends} == {1}, ends
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    newest = checkpoint.newest(run)
    assert newest is not None
    assert all(first_not_finite(part) is None for part in checkpoint.load(newest, Ranks(world_size=world_size)))
    assert str(newest.relative_to(tiny_config.parent)) in run.failed.read_text()
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert not run.best_weights.exists() or first_not_finite(load_file(run.best_weights)) is None


def test_an_evaluation_that_is_not_finite_ends_the_run(tiny_config: Path, run_ranks) -> None:
    words = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.log_every_steps=1000", "optim.lr=1e6"]
    end = run_ranks(words)[0]
    assert end.code == 1
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    assert "the evaluation of step 7 has a loss of nan" in run.failed.read_text()
    assert "the run may begin anew" in run.failed.read_text()
    assert not run.best_weights.exists()
    mended = [*words[:4], "optim.lr=0.01", "train.epochs=1", "train.checkpoint_every_steps=5"]
    assert run_ranks(mended)[0].code == 0
    known = run.load_config()
    load_weights(build_model(known.model, known.kap), run.checkpoint(5) / "shared.pt")  # what the message advises
