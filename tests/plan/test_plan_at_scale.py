"""Plans for machines that are not at hand, simulated whole: up to 1,024 ranks and the images of ImageNet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kapdist.config import Config
from kapdist.data.load.order import training_order
from kapdist.plan.training import Plan, make_plan, part

IMAGENET = 1_281_167
MOST_RANKS = 1024


def config(batch_size: int, accumulation_steps: int = 1, order: str = "random") -> Config:
    train = {"batch_size": batch_size, "accumulation_steps": accumulation_steps, "epochs": 2}
    data = {"train": "train.beton", "validation": "val.beton", "order": order, "resolution": 224}
    return Config.model_validate({"name": "x", "data": data, "train": train, "optim": {"warmup_epochs": 0}})


def forwards(plan: Plan, step: int) -> list[range]:
    """What each rank takes in each part of a step, rank by rank."""
    return [
        part(plan.rank_batch(step, rank), index, plan.accumulation_steps)
        for rank in range(plan.world_size)
        for index in range(plan.accumulation_steps)
    ]


def assert_cut_once(parts: list[range], whole: range) -> None:
    """The parts are the whole: one after the other, none left out, none twice."""
    assert [(p.start, p.stop) for p in parts] == list(
        zip([whole.start, *(p.stop for p in parts[:-1])], [p.stop for p in parts], strict=True)
    )
    assert parts[-1].stop == whole.stop


@settings(max_examples=40)
@given(st.integers(1, MOST_RANKS), st.integers(1, 4), st.integers(0, 8192), st.integers(0, IMAGENET))
def test_a_step_is_cut_once_over_ranks_and_parts(
    ranks: int, accumulation: int, more_per_batch: int, more_images: int
) -> None:
    batch_size = 2 * ranks * accumulation + more_per_batch
    plan = make_plan(config(batch_size, accumulation), batch_size + more_images, ranks)
    for step in (0, plan.steps_per_epoch // 2, plan.total_steps - 1):
        parts = forwards(plan, step)
        assert_cut_once(parts, plan.batch(step))
        assert min(map(len, parts)) >= 1
        shares = [len(plan.rank_batch(step, rank)) for rank in range(ranks)]
        assert max(shares) - min(shares) <= 1
        for rank in range(ranks):
            own = [len(p) for p in parts[rank * accumulation : (rank + 1) * accumulation]]
            assert max(own) - min(own) <= 1


@settings(max_examples=30)
@given(st.integers(2, 8192), st.integers(0, IMAGENET))
def test_batches_cut_an_epoch_once(batch_size: int, more_images: int) -> None:
    num_images = min(batch_size + more_images, 5000 * batch_size)
    plan = make_plan(config(batch_size), num_images, 1)
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch, plan.total_steps)]
    assert_cut_once(batches, range(num_images))
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


@settings(max_examples=40)
@given(st.integers(2, MOST_RANKS), st.integers(0, 200_000))
def test_a_batch_is_the_same_set_on_any_number_of_ranks(ranks: int, step: int) -> None:
    plans = [make_plan(config(4096, accumulation), IMAGENET, n) for n, accumulation in ((1, 1), (ranks, 2))]
    alone, shared = (plan.batch(step) for plan in plans)
    assert alone == shared
    assert_cut_once(forwards(plans[1], step), alone)


@pytest.mark.parametrize("order", ["random", "quasi-random"])
def test_an_epoch_of_imagenet_on_1024_ranks_holds_every_image_once(order: str) -> None:
    """Every rank's part of every step, taken out of the epoch's own permutation."""
    settings = config(16_384, accumulation_steps=2, order=order)
    plan = make_plan(settings, IMAGENET, MOST_RANKS)
    order_of_epoch = training_order(settings.data, IMAGENET, settings.seed, 1)
    seen = np.zeros(IMAGENET, np.int64)
    for step in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch):
        for p in forwards(plan, step):
            seen[order_of_epoch[p.start : p.stop]] += 1
    assert (seen == 1).all()


def test_ranks_may_change_in_the_middle_of_an_epoch() -> None:
    """1,024 ranks, then 8, then 1,000: the epoch goes on with the images that are left."""
    plans = [make_plan(config(4096), IMAGENET, ranks) for ranks in (MOST_RANKS, 8, 1000)]
    ends = [0, 100, 217, plans[0].steps_per_epoch]
    taken = [
        plan.rank_batch(step, rank)
        for plan, start, end in zip(plans, ends, ends[1:], strict=False)
        for step in range(start, end)
        for rank in range(plan.world_size)
    ]
    assert_cut_once(taken, range(IMAGENET))
