"""Every network of ours by its name."""

from collections.abc import Callable

from torch import nn

from kapdist.models.cnn import CNN
from kapdist.models.preact_resnet import preact_resnet18
from kapdist.models.resnet import resnet10, resnet18, resnet34, resnet50, resnet101
from kapdist.models.wide_resnet import wide_resnet28_10, wide_resnet34_10

RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": resnet10,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}
SMALL_IMAGES: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "preact_resnet18": preact_resnet18,
    "wide_resnet28_10": wide_resnet28_10,
    "wide_resnet34_10": wide_resnet34_10,
}
MODELS = RESNETS | SMALL_IMAGES
