"""The plan, which knows no torch, refuses the batches that the models' norms refuse, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kapdist.config import Config, KapConfig, ModelConfig
from kapdist.config.networks import SMALL_IMAGES, stride_of
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.plan.training import make_plan


def config(stem: str, side: int, batch_size: int = 4, name: str = "resnet10", **adversarial: object) -> Config:
    return Config(
        name="test",
        data={"train": Path("a"), "validation": Path("b"), "resolution": side},
        model={"name": name, "num_classes": 4, "stem": stem, "width": 0.125},
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
    ("name", "stem", "side"),
    [
        *[("resnet10", "cifar", side) for side in (8, 9, 16)],
        *[("resnet10", "imagenet", side) for side in (32, 33, 64)],
        *[("preact_resnet18", "cifar", side) for side in (8, 9)],
        ("wide_resnet28_10", "cifar", 8),
        ("cnn", "cifar", 8),
    ],
)
def test_a_part_with_one_image_is_planned_where_the_model_trains_on_it(name: str, stem: str, side: int) -> None:
    wanted = config(stem, side, name=name)
    assert make_plan(wanted, num_images=8, world_size=2)  # two images each
    if trains(wanted, 1):
        assert make_plan(wanted, num_images=8, world_size=4)
    else:
        with pytest.raises(InputError, match=r"at least 2 images in each part of a step .*part with one"):
            make_plan(wanted, num_images=8, world_size=4)


@pytest.mark.parametrize("name", ["resnet18", *SMALL_IMAGES])
def test_the_stride_is_the_side_of_the_largest_images_of_which_the_last_norm_sees_one_pixel(name: str) -> None:
    """Smaller than any config's images, where the networks themselves still work."""
    stride = stride_of(name, "cifar")
    section = {"name": name, "num_classes": 4, "stem": "cifar", "width": 0.1, "zero_init_residual": False}
    model = build_model(ModelConfig(**section), KapConfig()).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.rand(1, 3, stride, stride))
    assert model(torch.rand(1, 3, stride + 1, stride + 1)).shape == (1, 4)


def test_the_smallest_part_counts() -> None:
    """Nine images in batches of 5 and 4 on two ranks: 2 and 3, and in three parts 1."""
    assert make_plan(config("cifar", 8, 5), num_images=9, world_size=2)
    with pytest.raises(InputError, match="the last maps of 8 px images are 1 x 1"):
        make_plan(config("cifar", 8, 5), num_images=9, world_size=3)


def test_clean_images_beside_adversarial_ones_make_two() -> None:
    assert make_plan(config("cifar", 8, mode="fast", clean_share=0.5), num_images=8, world_size=4)
