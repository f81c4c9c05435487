"""ResNet (He et al. 2016, arXiv 1512.03385), with torchvision's names and shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.models.blur import blur_before

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEMS = ("imagenet", "cifar")


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one network have in common."""

    blurpool: bool
    dropout: float


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """A strided 1 x 1 projection where the shape changes, else nothing (option B of He et al.)."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; `channels` leave it."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        super().__init__()
        self.blur = blur_before(in_channels, stride, options.blurpool)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(x)
        out = self.dropout(self.relu(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, strided 3 x 3 and 1 x 1 convolutions around a shortcut; 4 * channels leave it.

    The stride sits in the 3 x 3 convolution ("v1.5", Goyal et al. 2017, arXiv 1706.02677, and torchvision).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.blur = blur_before(channels, stride, options.blurpool)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(options.dropout)
        self.conv3 = conv1x1(channels, channels * self.expansion)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut_blur = blur_before(in_channels, stride, options.blurpool)
        self.downsample = shortcut(in_channels, channels * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.dropout(self.relu(self.bn2(self.conv2(self.blur(out)))))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(self.shortcut_blur(x))))


class ResNet(nn.Module):
    """A ResNet for images in [0, 1]; their normalisation is its first step.

    Arguments:
        block: BasicBlock or Bottleneck; depths: blocks in each of the four stages.
        stem: "imagenet" is the strided 7 x 7 convolution and a max pool, "cifar" one 3 x 3 convolution.
        width: scales the 64 channels of the first stage, rounded to a multiple of 8 (at least 8); each later
            stage doubles them. A KAP sheet of 3 x 3 needs 16, hence a width of 0.25 or more.
        blurpool: a Blur before each strided convolution of 16 or more input channels, shortcuts included.
        zero_init_residual: the last norm of each block starts at zero, so each block starts as its shortcut
            (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        dropout: probability of dropping an activation before the last convolution of each block, in training;
            the pseudo-ensemble to compare KAP with (Bachman et al. 2014, arXiv 1412.4864). Between the
            convolutions, as in Wide ResNets (arXiv 1605.07146), so that each pass trains another sub-network
            while the shortcut stays whole.
        mean, std: of the images' channels, in units of [0, 1]; ImageNet's by default, and for other than 3
            channels the mean of ImageNet's. They are no part of the state_dict, whose keys and shapes are
            torchvision's at width 1 and the imagenet stem.

    Shapes: (batch, in_channels, height, width) to logits (batch, num_classes).
    Raises: ValueError for an unknown stem, a width not above 0, mean or std of another number of channels.
    Source: He et al. 2016, arXiv 1512.03385; initialised as torchvision does.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        stem: str = "imagenet",
        width: float = 1.0,
        in_channels: int = 3,
        blurpool: bool = False,
        zero_init_residual: bool = False,
        dropout: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, found {stem!r}")
        base = scaled_channels(64, width)
        self.register_buffer("mean", _per_channel(mean, IMAGENET_MEAN, in_channels, "mean"), persistent=False)
        self.register_buffer("std", _per_channel(std, IMAGENET_STD, in_channels, "std"), persistent=False)
        big = stem == "imagenet"
        self.conv1 = nn.Conv2d(in_channels, base, 7, 2, 3, bias=False) if big else conv3x3(in_channels, base)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if big else nn.Identity()
        options = BlockOptions(blurpool, dropout)
        expansion = block.expansion
        self.layer1 = stage(block, depths[0], base, base, 1, options)
        self.layer2 = stage(block, depths[1], base * expansion, base * 2, 2, options)
        self.layer3 = stage(block, depths[2], base * 2 * expansion, base * 4, 2, options)
        self.layer4 = stage(block, depths[3], base * 4 * expansion, base * 8, 2, options)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(base * 8 * expansion, num_classes)
        self._initialise(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck) and zero_init_residual:
                nn.init.zeros_(module.last_norm.weight)


def stage(
    block: type[BasicBlock] | type[Bottleneck],
    depth: int,
    in_channels: int,
    channels: int,
    stride: int,
    options: BlockOptions,
) -> nn.Sequential:
    """`depth` blocks, of which the first changes resolution and width."""
    first = block(in_channels, channels, stride, options)
    rest = [block(channels * block.expansion, channels, 1, options) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def scaled_channels(channels: int, width: float) -> int:
    """channels * width as a multiple of 8, at least 8: fast on vector units, and a sheet for KAP."""
    if not width > 0:
        raise ValueError(f"width must be above 0, found {width}")
    return max(8, round(channels * width / 8) * 8)


def _per_channel(given: Sequence[float] | None, imagenet: Sequence[float], channels: int, name: str) -> Tensor:
    if given is None:
        given = imagenet if channels == len(imagenet) else [sum(imagenet) / len(imagenet)] * channels
    if len(given) != channels:
        raise ValueError(f"{name} must have one number for each of the {channels} channels, found {len(given)}")
    return torch.tensor(given, dtype=torch.float32).view(1, channels, 1, 1)


def resnet10(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-10, half of ResNet-18, for small data; see `ResNet` for the options. torchvision has none."""
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes, **options)


def resnet18(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-18; see `ResNet` for the options."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


def resnet34(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-34; see `ResNet` for the options."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


def resnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-50; see `ResNet` for the options."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)


def resnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-101; see `ResNet` for the options."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, **options)
