"""What a logged step says of its speed, against numbers written out; traces of steps."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch
from in_memory import linear, make_config, make_job
from pydantic import ValidationError
from torch import nn

from kapdist.config import Config, EngineConfig
from kapdist.engine import Ranks, join
from kapdist.errors import InputError
from kapdist.kap import kapify
from kapdist.plan.adversarial import plan_adversarial
from kapdist.run.paths import RunDir
from kapdist.train.flops import forward_flops, peak_of, step_flops
from kapdist.train.loop import tracing
from kapdist.train.speed import Speed


class OneOfThree(Ranks):
    """A rank whose peers wait and compute as long as said."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tensor([[0.0, 0.4, 0.1], [0.0, 1.0, 3.0]], dtype=torch.float64)


def test_the_rank_that_others_wait_for_is_named() -> None:
    speed = Speed(OneOfThree(0, 3), 1e12, {96: 2e9}.get)
    speed.begun -= 10
    speed.waiting.seconds, speed.forward.seconds = 0.2, 0.6
    found = speed.describe(600.0, side=96)
    assert found["data_wait"] == pytest.approx(0.4 / 10, rel=1e-2)
    assert found["straggler"] == 2
    assert found["straggler_lag"] == pytest.approx((3.0 - 1.0) / 10, rel=1e-2)
    assert found["flop_share"] == pytest.approx(600 * 2e9 / 3e12)
    assert speed.waiting.seconds == speed.forward.seconds == 0


def test_time_is_taken_in_its_block_alone() -> None:
    speed = Speed(Ranks(), None, lambda side: None)
    with speed.waiting.running():
        time.sleep(0.05)
    time.sleep(0.05)
    found = speed.describe(1.0, side=8)
    assert found.keys() == {"data_wait"}
    assert 0.05 / 2 > 0 < found["data_wait"] < 0.75
    assert speed.describe(1.0, side=8) == {"data_wait": 0.0}


def test_the_operations_of_a_step() -> None:
    """Two for each multiplication of convolutions and linear layers; averages and noise add none to a forward."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)
    model = kapify(nn.Sequential(*layers), pool_size=3, layout="line", noise_std=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = 2 * (3 * 9 * 8 * 64 + 8 * 64 * 5)
    assert forward_flops(model.train(), 8) == forward
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert step_flops(model, 8, None) == 3 * forward
    # trades: away from one forward, two steps of a forward and a gradient of images, then both kinds of images
    trades = plan_adversarial(make_config({"mode": "trades", "steps": 2}).adversarial, 4, 1)
    assert step_flops(model, 8, trades) == (1 + 2 * 2 + 2 * 3) * forward
    assert step_flops(nn.Linear(2, 2), 8, None) is None


@pytest.mark.parametrize(
    ("name", "told", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"precision": "bf16"}, 989e12),
        ("NVIDIA H100 80GB HBM3", {}, 494e12),
        ("NVIDIA H100 PCIe", {"precision": "fp16"}, 756e12),
        ("NVIDIA A100-SXM4-40GB", {"tf32": False}, 19.5e12),
        ("Somebody's GPU", {}, None),
    ],
)
def test_what_a_device_is_made_for(name: str, told: dict, expected: float | None) -> None:
    found = peak_of(name, EngineConfig.model_validate(told))
    assert found == (expected if expected is None else pytest.approx(expected))


def test_the_steps_that_are_named_leave_a_trace(tmp_path: Path) -> None:
    job = make_job(make_config({}, profile_steps=(2, 4)), linear(), 12)
    object.__setattr__(job, "run", RunDir(tmp_path))
    for step in range(1, 5):
        with tracing(job, step):
            torch.ones(3, 3) @ torch.ones(3, 3)
    assert sorted(path.name for path in tmp_path.rglob("*.gz")) == [
        "step-000000002.json.gz",
        "step-000000004.json.gz",
    ]
    events = json.loads(gzip.decompress(job.run.profile(2).read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::mm" for event in events)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"engine": {"graphs": True, "name": "deepspeed"}}, "graphs with name ddp only"),
        ({"engine": {"graphs": True, "device": "cpu"}}, "graphs on GPUs only"),
        ({"engine": {"graphs": True}, "adversarial": {"mode": "free"}}, "without adversarial.mode free"),
        (
            {"engine": {"graphs": True}, "adversarial": {"mode": "pgd", "noise": "fixed"}},
            "without adversarial.noise fixed",
        ),
    ],
)
def test_what_no_graph_holds_is_refused(told: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Config.model_validate({"name": "x", "data": {"train": "a", "validation": "b"}} | told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(InputError, match=r"engine.graphs: expected a CUDA device"), join(EngineConfig(graphs=True)):
        pass
