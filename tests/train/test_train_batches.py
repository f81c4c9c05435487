"""The images of a step: the same ids with the same pixels on any number of ranks, each once per epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kapdist.config import Config, DataConfig, OptimConfig, TrainConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.load.loader import Batch, Loader
from kapdist.data.load.order import epoch_order, quasi_random_order
from kapdist.plan.training import make_plan
from kapdist.train.batches import InputNoise, training_batches

SEED = 5


@pytest.fixture
def config(small_betons: tuple[Path, Path]) -> Config:
    return Config(
        name="test",
        seed=SEED,
        data=DataConfig(train=small_betons[0], validation=small_betons[1], flip=True, translate=3),
        train=TrainConfig(batch_size=20, epochs=2, accumulation_steps=2),
        optim=OptimConfig(warmup_epochs=0),
    )


def step_images(config: Config, world_size: int, steps: range) -> list[dict[int, bytes]]:
    """For each step {image id: pixels with input noise} over all ranks."""
    info = open_beton(config.data.train)
    plan = make_plan(config, info.num_images, world_size)
    found: list[dict[int, bytes]] = [{} for _ in steps]
    noise = InputNoise(0.1, SEED)
    for rank in range(world_size):
        loader = Loader(
            info,
            config.data,
            training=True,
            seed=SEED,
            max_batch_size=20,
            device=torch.device("cpu"),
            num_workers=1,
        )
        batches = training_batches(loader, plan, config, rank, steps.start)
        for number, step in enumerate(steps):
            for _ in range(config.train.accumulation_steps):
                collect(next(batches), noise, plan.epoch(step), found[number])
    return found


def collect(batch: Batch, noise: InputNoise, epoch: int, into: dict[int, bytes]) -> None:
    for index, image in zip(batch.indices.tolist(), noise(batch, epoch), strict=True):
        assert index not in into, "an image twice in one step"
        into[index] = image.contiguous().numpy().tobytes()


def test_a_pixel_s_noise_depends_on_no_layout_and_on_no_neighbour() -> None:
    images, noise = torch.rand(5, 3, 9, 7), InputNoise(0.3, SEED)
    rows = np.array([3, 9, 2**33, 0, 1])
    found = noise(Batch(images, torch.zeros(5), rows), 4)
    layout = noise(Batch(images.to(memory_format=torch.channels_last), torch.zeros(5), rows), 4)
    assert torch.equal(layout, found)
    assert layout.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(noise(Batch(images[2:4], torch.zeros(2), rows[2:4]), 4), found[2:4])
    again = noise(Batch(images, torch.zeros(5), rows), 5)
    noises = torch.cat([found - images, again - images]).flatten(1)
    correlation = torch.corrcoef(noises) - torch.eye(10)
    assert correlation.abs().max() < 5 / noises.shape[1] ** 0.5
    assert noises.std() == pytest.approx(0.3, abs=5 * 0.3 / (2 * noises.numel()) ** 0.5)
    assert torch.equal(InputNoise(0.0, SEED)(Batch(images, torch.zeros(5), rows), 4), images)


def quasi_random(config: Config) -> Config:
    data = config.data.model_copy(update={"order": "quasi-random", "page_images": 5})
    return config.model_copy(update={"data": data})


@pytest.mark.parametrize("order", ["random", "quasi-random"])
def test_a_step_is_the_same_on_any_number_of_ranks(config: Config, order: str) -> None:
    if order == "quasi-random":
        config = quasi_random(config)
    steps = range(5, 9)  # over the end of the first epoch
    one, two, three = (step_images(config, world_size, steps) for world_size in (1, 2, 3))
    assert one == two == three


def test_one_two_one_ranks_within_an_epoch_see_every_image_once(config: Config) -> None:
    parts = (1, range(2)), (2, range(2, 5)), (1, range(5, 7))
    seen = [
        index for world_size, steps in parts for step in step_images(config, world_size, steps) for index in step
    ]
    assert sorted(seen) == list(range(130))


def test_the_order_is_the_epochs_permutation(config: Config) -> None:
    ids = [index for step in step_images(config, 1, range(7)) for index in step]
    assert ids == epoch_order(130, SEED, 0).tolist()
    assert not np.array_equal(epoch_order(130, SEED, 0), epoch_order(130, SEED, 1))


def test_the_order_is_the_one_that_the_config_names(config: Config) -> None:
    ids = [index for step in step_images(quasi_random(config), 1, range(7)) for index in step]
    assert ids == quasi_random_order(130, SEED, 0, 5).tolist()


def test_pixels_change_from_epoch_to_epoch(config: Config) -> None:
    first, second = (
        {k: v for step in step_images(config, 1, r) for k, v in step.items()} for r in (range(7), range(7, 14))
    )
    assert first.keys() == second.keys()
    assert sum(first[index] == second[index] for index in first) == 0
