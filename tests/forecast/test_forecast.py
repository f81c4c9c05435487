"""Forecasts against closed forms worked out by hand: ResNet-50 on ImageNet, four nodes of eight GPUs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from kapdist.config import Config
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.forecast.footprint import footprint
from kapdist.forecast.training import (
    Footprint,
    Machine,
    Memory,
    Rate,
    Traffic,
    forecast,
    memory,
    share,
    traffic,
    writes,
)
from kapdist.plan.training import make_plan
from kapdist.train.clock import Clock
from kapdist.train.optim import make_optimizer

IMAGENET = 1_281_167
PARAMETERS = 25_557_032  # of ResNet-50 with 1000 classes
NORM_CHANNELS = 26_560  # 64 + stages of 64, 128, 256, 512 with 3, 4, 6, 3 bottlenecks, and their four shortcuts
NORMS = 53


def config(**sections: dict) -> Config:
    values = {
        "name": "imagenet",
        "data": {"train": "train.beton", "validation": "val.beton"},
        "model": {"name": "resnet50"},
        "optim": {"lr": 2.0, "warmup_epochs": 5, "ema_decay": 0.999},
        "train": {"batch_size": 1024, "epochs": 90},
    }
    return Config.model_validate(values | sections)


@pytest.fixture(scope="module")
def resnet50() -> Footprint:
    return footprint(config())


def test_a_resnet50_weighs_what_it_is_known_to(resnet50: Footprint) -> None:
    assert resnet50.num_parameters == PARAMETERS
    assert resnet50.parameter_bytes == resnet50.gradient_bytes == 4 * PARAMETERS
    # Mean and variance in fp32 and a counter of 8 bytes for each norm; the normalisation's own six are not saved.
    assert resnet50.saved_buffer_bytes == 2 * 4 * NORM_CHANNELS + 8 * NORMS
    assert resnet50.buffer_bytes == resnet50.saved_buffer_bytes + 6 * 4


def test_the_forecast_of_a_resnet50_on_32_ranks(resnet50: Footprint) -> None:
    found = forecast(config(), IMAGENET, Machine(4, 8), resnet50, Rate(2000.0, "a guess"))
    assert found.machine.ranks == 32
    assert found.plan.steps_per_epoch == 1252  # 1,281,167 / 1024 = 1251.1
    assert (found.plan.total_steps, found.plan.warmup_steps) == (112_680, 6260)
    assert found.images_per_rank == (31, 32)  # 1,281,167 / 1252 = 1023.3, so batches of 1023 and 1024
    rates = dict(found.lr)
    assert rates[0] == pytest.approx(2 / 6260)
    assert rates[6260] == 2
    assert rates[112_679] == pytest.approx(2 / (112_680 - 6260))
    # 2 x 31/32 x 102,228,128 bytes of gradients
    assert found.traffic == Traffic(198_066_998, 0, 0)
    assert found.memory == Memory(
        parameters=102_228_128,
        gradients=102_228_128,
        optimizer=102_228_128,
        ema=102_228_128 + resnet50.buffer_bytes,
    )
    # Weights and norms, momentum, and the moving average of weights and norms.
    assert found.checkpoints.shared_bytes == 3 * 102_228_128 + 2 * resnet50.saved_buffer_bytes
    assert found.checkpoints.kept_bytes == 2 * found.checkpoints.total_bytes
    assert found.hours == pytest.approx(90 * IMAGENET / 64_000 / 3600)
    assert found.checkpoints.writes == 3  # half an hour and 1.6 ms, every ten minutes: 10, 20 and 30


def test_without_a_rate_no_hours_are_made_up(resnet50: Footprint) -> None:
    found = forecast(config(), IMAGENET, Machine(4, 8), resnet50, None)
    assert found.hours is None
    assert found.rate is None
    assert found.checkpoints.writes is None


WEIGHTS = Footprint(1000, 20, 4000, 80, 80, 0)


@pytest.mark.parametrize(
    ("stage", "accumulation", "expected"),
    [
        (0, 1, Traffic(7000, 0, 0)),
        (0, 3, Traffic(7000, 0, 0)),
        (1, 3, Traffic(7000, 3500, 0)),
        (2, 1, Traffic(7000, 3500, 0)),
        (2, 3, Traffic(21000, 3500, 0)),
    ],
)
def test_what_a_rank_of_eight_receives(stage: int, accumulation: int, expected: Traffic) -> None:
    assert traffic(stage, 8, WEIGHTS, accumulation) == expected
    assert traffic(stage, 1, WEIGHTS, accumulation).total == 0


@pytest.mark.parametrize(
    ("stage", "expected"), [(0, (4000, 4000)), (1, (4000, 1000)), (2, (500, 1000))], ids=["0", "1", "2"]
)
def test_zero_divides_what_a_rank_of_eight_holds(stage: int, expected: tuple[int, int]) -> None:
    held = memory(stage, 8, WEIGHTS, states=1, ema=False)
    assert (held.gradients, held.optimizer) == expected
    assert (held.parameters, held.ema) == (4000, 0)
    assert memory(0, 8, WEIGHTS, states=0, ema=True).optimizer == 0
    assert memory(0, 8, WEIGHTS, states=0, ema=True).ema == 4080


def test_adamw_keeps_two_averages(resnet50: Footprint) -> None:
    """What an AdamW over the parameters themselves holds after a step, but for its counts of steps."""
    settings = config(optim={"name": "adamw", "warmup_epochs": 5})
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = make_optimizer(torch.nn.ParameterList([weight]), settings.optim)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if value.numel() > 1]
    found = forecast(settings, IMAGENET, Machine(1, 8), resnet50, None)
    assert found.memory.optimizer == len(state) * resnet50.parameter_bytes == 2 * 102_228_128
    assert found.checkpoints.shared_bytes == 3 * 102_228_128 + resnet50.saved_buffer_bytes
    assert memory(1, 8, WEIGHTS, states=2, ema=False).optimizer == 1500


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_shares_are_those_of_the_plan(ranks: int, accumulation: int) -> None:
    train = {"batch_size": 60, "epochs": 2, "accumulation_steps": accumulation}
    plan = make_plan(config(train=train, optim={"warmup_epochs": 0}), 1003, ranks)
    taken = [len(plan.rank_batch(step, rank)) for step in range(plan.steps_per_epoch) for rank in range(ranks)]
    assert share(plan, ranks) == (min(taken), max(taken))


@pytest.mark.parametrize(
    ("by_step", "by_minute", "logged"),
    [(0, 0.5, 1), (0, 0.5, 20), (60, 0.5, 20), (7, 0, 20), (100, 9, 10), (0, 0.5, 10_000)],
)
def test_as_many_checkpoints_as_the_clock_makes(
    monkeypatch: pytest.MonkeyPatch, by_step: int, by_minute: float, logged: int
) -> None:
    fields = {"checkpoint_every_steps": by_step, "checkpoint_every_minutes": by_minute, "log_every_steps": logged}
    settings = config(train={"batch_size": 10, "epochs": 5, **fields}, optim={"warmup_epochs": 0})
    plan, now = make_plan(settings, 1000, 1), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, made = Clock(settings.train, plan, 0), 0
    for step in range(1, plan.total_steps + 1):
        now[0] += 0.7
        made += clock.saves(step, Ranks())
    assert writes(settings.train, plan.total_steps, 0.7 * plan.total_steps) == made
    assert made > 0


def test_a_forecast_shows_where_the_rate_goes_down() -> None:
    settings = config(
        train={"batch_size": 10, "epochs": 5}, optim={"lr": 1.0, "warmup_epochs": 0, "milestones": [1, 4]}
    )
    rates = dict(forecast(settings, 1000, Machine(1, 1), WEIGHTS, None).lr)
    assert [rates[step] for step in (0, 100, 400, 499)] == pytest.approx([1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("nodes", "gpus", "option"), [(0, 8, "--nodes"), (4, -1, "--gpus-per-node")])
def test_a_machine_has_ranks(nodes: int, gpus: int, option: str) -> None:
    with pytest.raises(InputError, match=f"{option}: expected 1 or more"):
        Machine(nodes, gpus)


def test_fewer_images_in_a_batch_than_ranks(resnet50: Footprint) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: expected at least 2048"):
        forecast(config(), IMAGENET, Machine(256, 8), resnet50, None)


def test_a_forecast_reads_no_file_and_needs_no_data(tmp_path: Path, resnet50: Footprint) -> None:
    data = {"train": str(tmp_path / "absent"), "validation": str(tmp_path / "absent")}
    described = forecast(config(data=data), IMAGENET, Machine(1, 1), resnet50, None).describe()
    assert described["traffic"]["total"] == 0
    assert described["ranks"] == 1
