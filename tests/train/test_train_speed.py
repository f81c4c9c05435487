"""What a logged step says of its speed, against numbers written out; traces of steps."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
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
from kapdist.plan.training import Ramp, make_plan
from kapdist.run.paths import RunDir
from kapdist.train.flops import flops_of_steps, forward_flops, peak_of
from kapdist.train.loop import tracing
from kapdist.train.speed import Speed


class OneOfThree(Ranks):
    """A rank whose peers wait and compute as long as said."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tensor([[0.0, 0.4, 0.1], [0.0, 1.0, 3.0]], dtype=torch.float64)


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("kapdist.train.speed.time", made)
    return made


def test_the_rank_that_others_wait_for_is_named(clock: Clock) -> None:
    speed = Speed(OneOfThree(0, 3), 1e12, [1e9, 2e9, 2e9].__getitem__)
    clock.pass_by(10)
    speed.waiting.seconds, speed.forward.seconds = 0.2, 0.6
    found = speed.describe({0: 2000, 1: 2000, 2: 2001})
    assert found["images_per_second"] == pytest.approx(600.1)
    assert found["data_wait"] == pytest.approx(0.4 / 10)
    assert found["straggler"] == 2
    assert found["straggler_lag"] == pytest.approx((3.0 - 1.0) / 10)
    assert found["flop_share"] == pytest.approx((200 * 1e9 + 400.1 * 2e9) / 3e12)
    assert speed.waiting.seconds == speed.forward.seconds == 0


def test_time_is_taken_in_its_block_alone(clock: Clock) -> None:
    speed = Speed(Ranks(), None, lambda step: None)
    with speed.waiting.running():
        clock.pass_by(1)
    clock.pass_by(3)
    found = speed.describe({0: 1})
    assert found.keys() == {"images_per_second", "data_wait"}
    assert found["images_per_second"] == pytest.approx(1 / 4)
    assert found["data_wait"] == pytest.approx(1 / 4)
    assert speed.describe({1: 1})["data_wait"] == 0
    assert Speed(Ranks(), 1e12, [1e9, None].__getitem__).describe({0: 1, 1: 1}).keys() == found.keys()


def test_what_lies_between_steps_is_no_part_of_their_time(clock: Clock) -> None:
    """An epoch of few steps and a long evaluation would be told as one of slow steps."""
    speed = Speed(Ranks(), None, lambda step: None)
    clock.pass_by(7)
    speed.begin()
    clock.pass_by(4)
    with speed.outside():
        clock.pass_by(100)
    clock.pass_by(1)
    assert speed.describe({0: 10, 1: 10})["images_per_second"] == pytest.approx(20 / 5)


def test_a_run_tells_the_rate_of_its_steps_alone(tiny_config: Path, kapdist) -> None:
    """The step after a long evaluation took what lies between their lines, or less."""
    words = ["train.log_every_steps=1", "train.eval_batch_size=1", "robust.every_epochs=1", "robust.steps=20"]
    assert kapdist("train", tiny_config, *words).code == 0
    lines = [json.loads(line) for line in RunDir(tiny_config.parent / "runs" / "tiny").metrics.open()]
    seventh, evaluated, robust, eighth = (line for line in lines if line["step"] in (7, 8))
    assert [evaluated["kind"], robust["kind"], eighth["kind"]] == ["evaluate", "robust", "train"]
    assert robust["time"] - seventh["time"] > 0.3
    assert 130 / 7 / eighth["images_per_second"] < eighth["time"] - robust["time"] + 0.1


def test_the_operations_of_a_step() -> None:
    """Two for each multiplication of convolutions and linear layers; averages and noise add none to a forward."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)
    model = kapify(nn.Sequential(*layers), pool_size=3, layout="line", noise_std=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = 2 * (3 * 9 * 8 * 64 + 8 * 64 * 5)
    assert forward_flops(model.train(), 8) == forward
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plan = replace(make_plan(make_config({}), 12, 1), ramp=Ramp(8, 8))
    assert flops_of_steps(model, plan)(0) == 3 * forward
    # trades: away from one forward, two steps of a forward and a gradient of images, then both kinds of images
    trades = replace(make_plan(make_config({"mode": "trades", "steps": 2}), 12, 1), ramp=Ramp(8, 8))
    assert flops_of_steps(model, trades)(0) == (1 + 2 * 2 + 2 * 3) * forward
    assert flops_of_steps(nn.Linear(2, 2), plan)(0) is None


def test_the_operations_of_each_step_are_its_own() -> None:
    """The side of images grows, weights are perturbed late: a line of metrics may tell of both sorts of steps."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    plan = replace(make_plan(make_config({}), 12, 1), ramp=Ramp(32, 64, 1, 2))
    forward = {side: 2 * (3 * 9 * 8 * side**2 + 8 * 5) for side in (32, 64)}
    flops_of = flops_of_steps(model, plan)
    assert [flops_of(step) for step in range(4)] == [3 * forward[side] for side in (32, 32, 64, 64)]
    late = {"mode": "pgd", "steps": 2, "awp_gamma": 0.01, "awp_warmup_epochs": 2}
    plan = replace(make_plan(make_config(late), 12, 1), ramp=Ramp(32, 32))
    flops_of = flops_of_steps(model, plan)
    assert [flops_of(step) for step in range(4)] == [(2 * 2 + 3 * n) * forward[32] for n in (1, 1, 2, 2)]


@pytest.mark.parametrize(
    ("name", "told", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"precision": "bf16"}, 989e12),
        ("NVIDIA H100 80GB HBM3", {}, 494e12),
        ("NVIDIA H100 PCIe", {"precision": "fp16"}, 756e12),
        ("NVIDIA A100-SXM4-40GB", {"tf32": False}, 19.5e12),
        ("NVIDIA L4", {"precision": "bf16"}, 121e12),
        ("NVIDIA L40", {"precision": "bf16"}, 181e12),
        ("NVIDIA L40S", {"precision": "bf16"}, 362e12),
        ("NVIDIA H200 NVL", {"precision": "bf16"}, 835e12),
        ("NVIDIA A10G", {}, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", {}, None),
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
