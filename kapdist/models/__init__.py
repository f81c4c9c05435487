"""The networks, into which `kapdist.kap.kapify` puts Kernel Average Pooling."""

from kapdist.models.cnn import CNN
from kapdist.models.networks import MODELS, RESNETS, SMALL_IMAGES
from kapdist.models.preact_resnet import PreActResNet, preact_resnet18
from kapdist.models.pretrained import from_pretrained
from kapdist.models.resnet import ResNet, resnet10, resnet18, resnet34, resnet50, resnet101
from kapdist.models.wide_resnet import WideResNet, wide_resnet28_10, wide_resnet34_10

__all__ = [
    "CNN",
    "MODELS",
    "RESNETS",
    "SMALL_IMAGES",
    "PreActResNet",
    "ResNet",
    "WideResNet",
    "from_pretrained",
    "preact_resnet18",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "wide_resnet28_10",
    "wide_resnet34_10",
]
