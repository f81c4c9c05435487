"""ResNet (He et al. 2016, arXiv 1512.03385), with torchvision's names and shapes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.models.blur import blur_before
from kapdist.models.convolutions import conv1x1, conv3x3, initialise
from kapdist.models.drop_path import drop_path
from kapdist.models.images import ImageNetwork
from kapdist.models.stages import BlockOptions, options_of_blocks, stage
from kapdist.models.widths import Widths, stage_channels

STEMS = ("imagenet", "cifar")


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
        self.drop_path = drop_path(options.drop_path)
        self.downsample = shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(x)
        out = self.dropout(self.relu(self.bn1(self.conv1(x))))
        out = self.drop_path(self.bn2(self.conv2(out)))
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
        self.drop_path = drop_path(options.drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut_blur = blur_before(in_channels, stride, options.blurpool)
        self.downsample = shortcut(in_channels, channels * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.dropout(self.relu(self.bn2(self.conv2(self.blur(out)))))
        out = self.drop_path(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(self.shortcut_blur(x))))


class ResNet(ImageNetwork):
    """A ResNet for images in [0, 1]; their normalisation is its first step, see `ImageNetwork` for it.

    Arguments:
        block: BasicBlock or Bottleneck; depths: blocks in each of the four stages.
        stem: "imagenet" is the strided 7 x 7 convolution and a max pool, "cifar" one 3 x 3 convolution.
        widths, width: the channels of the four stages, see `stage_channels`. KAP's window of 3 x 3 needs a sheet of
            3 x 3 or more: where channels double, a width of 0.25.
        blurpool: a Blur before each strided convolution of 16 or more input channels, shortcuts included.
        zero_init_residual: the last norm of each block starts at zero, so each block starts as its shortcut
            (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        dropout: probability of dropping an activation before the last convolution of each block, in training;
            the pseudo-ensemble to compare KAP with (Bachman et al. 2014, arXiv 1412.4864). Between the
            convolutions, as in Wide ResNets (arXiv 1605.07146), so that each pass trains another sub-network
            while the shortcut stays whole.
        drop_path: probability that an image skips the last block, in training; earlier blocks have less, see
            `drop_rates`.

    The state_dict has torchvision's keys, and at width 1 and the imagenet stem its shapes.

    Shapes: (batch, in_channels, height, width) to logits (batch, num_classes).
    Raises: ValueError for an unknown stem, a width not above 0, widths that are no four numbers, a drop_path out of
    [0, 1), mean or std of another number of channels.
    Source: He et al. 2016, arXiv 1512.03385; initialised as torchvision does.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        stem: str = "imagenet",
        width: float = 1.0,
        widths: Widths = "doubling",
        in_channels: int = 3,
        blurpool: bool = False,
        zero_init_residual: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        normalise: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, normalise, mean, std)
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, found {stem!r}")
        channels = stage_channels(widths, width)
        first, big = channels[0], stem == "imagenet"
        self.conv1 = nn.Conv2d(in_channels, first, 7, 2, 3, bias=False) if big else conv3x3(in_channels, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if big else nn.Identity()
        expansion = block.expansion
        sources = [first, *(expansion * count for count in channels)]
        options = options_of_blocks(depths, blurpool, dropout, drop_path)
        self.layer1 = stage(block, sources[0], channels[0], 1, options[0], expansion)
        self.layer2 = stage(block, sources[1], channels[1], 2, options[1], expansion)
        self.layer3 = stage(block, sources[2], channels[2], 2, options[2], expansion)
        self.layer4 = stage(block, sources[3], channels[3], 2, options[3], expansion)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(sources[4], num_classes)
        initialise(self)
        if zero_init_residual:
            self._zero_last_norms()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalised(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def _zero_last_norms(self) -> None:
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)


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
