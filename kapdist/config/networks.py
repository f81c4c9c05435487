"""What a config and a plan know of the networks, without torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

NetworkName = Literal[
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "cnn",
    "preact_resnet18",
    "wide_resnet28_10",
    "wide_resnet34_10",
]
RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101")
PREACTIVATION = ("preact_resnet18", "wide_resnet28_10", "wide_resnet34_10")
SMALL_IMAGES = ("cnn", *PREACTIVATION)


class Networks(NamedTuple):
    """Networks that have something, and what the key for it says of those that have not."""

    names: tuple[str, ...]
    absent: object


OF_SOME = {
    "stem": Networks(RESNETS, "cifar"),
    "zero_init_residual": Networks(RESNETS, False),
    "widths": Networks((*RESNETS, "preact_resnet18"), "doubling"),
    "blurpool": Networks((*RESNETS, *PREACTIVATION), False),
    "drop_path": Networks((*RESNETS, *PREACTIVATION), 0.0),
    "expansion": Networks(("cnn",), 1),
}
STRIDES = {"imagenet": 32, "cifar": 8}  # of all of a ResNet's layers together, by its stem
OWN_STRIDES = {
    "cnn": 2,
    "wide_resnet28_10": 4,
    "wide_resnet34_10": 4,
}  # behind cnn's second pool is no norm


def keys_of_others(name: str) -> set[str]:
    """Return the keys of a model that are for other networks than this one."""
    return {key for key, these in OF_SOME.items() if name not in these.names}


def stride_of(name: str, stem: str) -> int:
    """Return by how much a network shrinks an image, in pixels, on the way to its last norm.

    All halve a side and round up, so that the last norm sees one pixel of images that are no larger than this.
    """
    return OWN_STRIDES.get(name, STRIDES[stem])
