"""The plan, which knows no torch, refuses the batches that the models' norms refuse, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.plan.training import make_plan


def config(stem: str, side: int, batch_size: int = 4, **adversarial: object) -> Config:
    return Config(
        name="test",
        data={"train": Path("a"), "validation": Path("b"), "resolution": side},
        model={"name": "resnet10", "num_classes": 4, "stem": stem, "width": 0.125},
        train={"batch_size": batch_size, "epochs": 3},
        adversarial=adversarial,
    )


def trains(planned: Config, images: int) -> bool:
    side = planned.data.resolution
    try:
        build_model(planned.model, planned.kap).train()(torch.rand(images, 3, side, side))
    except ValueError:  # more than 1 value per channel is expected
        return False
    return True


@pytest.mark.parametrize(
    ("stem", "side"),
    [("cifar", 8), ("cifar", 9), ("cifar", 16), ("imagenet", 32), ("imagenet", 33), ("imagenet", 64)],
)
def test_a_part_with_one_image_is_planned_where_the_model_trains_on_it(stem: str, side: int) -> None:
    wanted = config(stem, side)
    assert make_plan(wanted, num_images=8, world_size=2)  # two images each
    if trains(wanted, 1):
        assert make_plan(wanted, num_images=8, world_size=4)
    else:
        with pytest.raises(InputError, match=r"at least 2 images in each part of a step .*part with one"):
            make_plan(wanted, num_images=8, world_size=4)


def test_the_smallest_part_counts() -> None:
    """Nine images in batches of 5 and 4 on two ranks: 2 and 3, and in three parts 1."""
    assert make_plan(config("cifar", 8, 5), num_images=9, world_size=2)
    with pytest.raises(InputError, match="the last maps of 8 px images are 1 x 1"):
        make_plan(config("cifar", 8, 5), num_images=9, world_size=3)


def test_clean_images_beside_adversarial_ones_make_two() -> None:
    assert make_plan(config("cifar", 8, mode="fast", clean_share=0.5), num_images=8, world_size=4)
