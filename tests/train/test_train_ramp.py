"""Training whose images grow: the resolution is the step's, whenever the run was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from held import held
from processes import end_ranks, kill_ranks_after, start_ranks
from safetensors.torch import load_file

from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.plan.training import make_plan
from kapdist.run.paths import RunDir

RAMP = ["data.crop=random-resized", "data.min_resolution=32", "data.max_resolution=96", "data.end_ramp=2"]
AUTO = ["data.order=auto", "data.cache=auto", "data.page_images=8"]
WORDS = [
    "-m",
    "kapdist.cli",
    "train",
    "tiny.yaml",
    "train.checkpoint_every_steps=1",
    "train.epochs=3",
    *RAMP,
    *AUTO,
]


def test_killed_in_the_ramp_and_continued_is_bitwise_equal(tiny_config: Path, run_ranks) -> None:
    folder = tiny_config.parent
    (end,) = run_ranks([*WORDS, "name=whole"])
    assert end.code == 0, end
    assert "order random, cache page: beton of 0.0 GiB" in end.output
    whole, killed = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "killed")
    kill_ranks_after(killed.latest, start_ranks([*held(folder, 20), *WORDS[2:], "name=killed"], 1, folder))
    assert killed.latest.exists()
    assert not killed.done.exists()
    # Continued with the images on the device, from the node's own disk: they are the same.
    other = ["data.on_device=true", f"data.stage={folder / 'node'}"]
    (end,) = end_ranks(start_ranks([*WORDS, "name=killed", *other], 1, folder), 240)
    assert end.code == 0, end
    assert len(list((folder / "node").glob("*.beton"))) == 2
    first, second = load_file(whole.weights), load_file(killed.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(whole.plan.read_text())["ramp"] == {"first": 32, "last": 96, "start": 0.0, "end": 2.0}


def test_the_plan_knows_every_step_s_resolution() -> None:
    data = {"train": "a.beton", "validation": "b.beton", "crop": "random-resized"}
    data |= {"min_resolution": 160, "max_resolution": 192, "start_ramp": 2, "end_ramp": 4}
    train = {"epochs": 6, "batch_size": 10}
    config = Config.model_validate({"name": "ramp", "data": data, "train": train})
    plan = make_plan(config, 30, 2)
    assert [plan.resolution(step) for step in range(18)] == [160] * 9 + [176 // 32 * 32 + 32] * 3 + [192] * 6
    with pytest.raises(InputError, match=r"data\.end_ramp: expected at most train\.epochs = 3, found 4"):
        make_plan(config.model_copy(update={"train": config.train.model_copy(update={"epochs": 3})}), 30, 2)
