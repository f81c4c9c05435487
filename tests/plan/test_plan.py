from math import ceil, isclose
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kapdist.config import Config, DataConfig, OptimConfig, TrainConfig
from kapdist.errors import InputError
from kapdist.plan.training import Plan, make_plan, part


def config(batch_size: int = 32, epochs: int = 3, accumulation_steps: int = 1, **optim: object) -> Config:
    return Config(
        name="test",
        data=DataConfig(train=Path("a"), validation=Path("b")),
        train=TrainConfig(batch_size=batch_size, epochs=epochs, accumulation_steps=accumulation_steps),
        optim=OptimConfig(**optim),
    )


@given(st.integers(0, 500), st.integers(1, 40))
def test_parts_cut_a_range_without_gap_or_overlap(size: int, count: int) -> None:
    parts = [part(range(7, 7 + size), index, count) for index in range(count)]
    assert [position for p in parts for position in p] == list(range(7, 7 + size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 8))
def test_an_epoch_takes_every_image_once(num_images: int, batch_size: int, world_size: int) -> None:
    assume(batch_size <= num_images)
    assume(num_images // ceil(num_images / batch_size) // world_size >= 2)  # else a norm may have one image
    plan = make_plan(config(batch_size), num_images, world_size)
    taken = [
        position
        for step in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)
        for rank in range(world_size)
        for position in plan.rank_batch(step, rank)
    ]
    assert taken == list(range(num_images))
    assert all(len(plan.batch(step)) <= batch_size for step in range(plan.steps_per_epoch))


@given(st.integers(64, 3000), st.integers(0, 50))
def test_the_batch_of_a_step_does_not_depend_on_ranks(num_images: int, step: int) -> None:
    plans = [make_plan(config(64), num_images, world_size) for world_size in (1, 2, 7)]
    assert len({plan.batch(step) for plan in plans}) == 1
    assert len({plan.lr(step) for plan in plans}) == 1


def plan_of(schedule: str) -> Plan:
    return make_plan(config(10, 10, lr=2.0, warmup_epochs=2, schedule=schedule), 100, 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warm_up_and_decay(schedule: str) -> None:
    plan = plan_of(schedule)
    assert (plan.total_steps, plan.warmup_steps) == (100, 20)
    assert isclose(plan.lr(0), 0.1)
    assert isclose(plan.lr(19), 2.0)
    assert isclose(plan.lr(20), 2.0)
    assert isclose(plan.lr(60), 1.0)
    assert 0 < plan.lr(99) < 0.05
    assert all(plan.lr(step) >= plan.lr(step + 1) for step in range(20, 99))


@given(
    st.integers(20, 60),
    st.lists(st.integers(1, 9), unique=True).map(sorted),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(0, 2),
)
def test_steps_are_torchs(num_images: int, milestones: list[int], factor: float, warmup_epochs: int) -> None:
    """torch.optim.lr_scheduler.MultiStepLR, an epoch's rate for each of its steps; the warm-up comes before it."""
    optim = {"lr": 0.3, "warmup_epochs": warmup_epochs, "decay_factor": factor}
    plan = make_plan(config(10, 10, schedule="steps", milestones=tuple(milestones), **optim), num_images, 1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)
    for epoch in range(10):
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            warm_up = 0.3 * (step + 1) / (plan.warmup_steps or 1)
            expected = warm_up if epoch < warmup_epochs else optimizer.param_groups[0]["lr"]
            assert isclose(plan.lr(step), expected, rel_tol=1e-12)
        optimizer.step()
        schedule.step()


def test_without_any_milestone_the_rate_stays_at_its_peak() -> None:
    plan = make_plan(config(10, 4, schedule="steps", milestones=(), warmup_epochs=0, lr=1.0), 100, 1)
    assert {plan.lr(step) for step in range(plan.total_steps)} == {1.0}


def test_milestones_that_nobody_named_are_half_and_three_quarters() -> None:
    plan = plan_of("steps")
    found = [plan.lr(step) for step in (20, 49, 50, 74, 75, 99)]
    assert found == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_a_milestone_within_an_epoch() -> None:
    plan = make_plan(config(10, 4, schedule="steps", milestones=(0.7, 2.51), warmup_epochs=0, lr=1.0), 100, 1)
    assert plan.milestones == (7, 26)  # the first steps that are not before it
    assert [plan.lr(step) for step in (6, 7, 25, 26)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_no_warm_up() -> None:
    assert make_plan(config(warmup_epochs=0, lr=0.5), 64, 1).lr(0) == 0.5


def test_the_learning_rate_goes_with_the_batch() -> None:
    """1.7 for 4,096 images is 0.425 for 1,024, on any number of ranks and in any number of parts."""
    optim = {"lr": 1.7, "lr_batch_size": 4096}
    for world_size, parts in ((1, 1), (8, 2)):
        plan = make_plan(config(1024, accumulation_steps=parts, **optim), 100_000, world_size)
        assert isclose(plan.peak_lr, 0.425)
        assert isclose(max(map(plan.lr, range(plan.total_steps))), 0.425)
        assert plan.peak_lr_in_words() == "0.425 = 1.7 for 4,096 images, scaled to 1,024"
    as_found = make_plan(config(4096, **optim), 100_000, 1)
    assert (as_found.peak_lr, as_found.peak_lr_in_words()) == (1.7, "1.7")
    assert make_plan(config(1024, lr=1.7), 100_000, 1).peak_lr == 1.7


def test_refusals() -> None:
    with pytest.raises(
        InputError, match=r"train\.batch_size: expected at most the 20 images of the data, found 32"
    ):
        make_plan(config(32), 20, 1)
    with pytest.raises(InputError, match=r"expected at least 64 \(ranks x accumulation\), found 32"):
        make_plan(config(32, accumulation_steps=4), 1000, 16)
    with pytest.raises(InputError, match=r"optim\.warmup_epochs: expected at most train\.epochs = 1, found 2"):
        make_plan(config(epochs=1, warmup_epochs=2), 1000, 1)
