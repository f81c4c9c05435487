"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv 1605.07146), as the robustness literature compares with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.models.convolutions import conv3x3, initialise
from kapdist.models.images import ImageNetwork
from kapdist.models.preact_resnet import PreActivation, projection
from kapdist.models.stages import BlockOptions, options_of_blocks, stage
from kapdist.models.widths import check_width, scaled_channels

STEM = 16  # channels, whatever the width
STRIDES = (1, 2, 2)


class WideBlock(PreActivation):
    """The block of a Wide ResNet: its projection is `convShortcut`."""

    def __init__(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        super().__init__(in_channels, channels, stride, options)
        self.convShortcut = projection(in_channels, channels, stride)

    @property
    def projection(self) -> nn.Module | None:
        return self.convShortcut


class WideStage(nn.Module):
    """The blocks of one resolution, under the name that published checkpoints have for them."""

    def __init__(self, in_channels: int, channels: int, stride: int, options: Sequence[BlockOptions]) -> None:
        super().__init__()
        self.layer = stage(WideBlock, in_channels, channels, stride, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(ImageNetwork):
    """A Wide ResNet for images in [0, 1]; see `ResNet` for the options.

    Arguments:
        depth: convolutions on the longest way, and the linear layer: 6 n + 4 for n blocks in each of three stages.
        widen: k, the stages have 16 k, 32 k and 64 k channels.
        width: scales k; channels are rounded to multiples of 8. The stem's 16 stay, as they do for every k: a
            WRN-34-10 of width 0.1 is a WRN-34-1.

    State keys are those of TRADES (Zhang et al. 2019, arXiv 1901.08573) and RobustBench, whose checkpoints are of
    images that are not normalised.

    Shapes: (batch, in_channels, height, width) to logits (batch, num_classes).
    Raises: ValueError for a depth that is no 6 n + 4, and as `ResNet` does.
    Source: Zagoruyko & Komodakis 2016, arXiv 1605.07146, with their dropout between the convolutions of a block.
    """

    UNUSED = ("sub_block1.",)  # in TRADES' files, and of no use to their network either

    def __init__(
        self,
        depth: int,
        widen: int,
        num_classes: int = 10,
        *,
        width: float = 1.0,
        in_channels: int = 3,
        blurpool: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        normalise: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, normalise, mean, std)
        check_width(width)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 n + 4 for some n of 1 or more, found {depth}")
        options = options_of_blocks([blocks] * len(STRIDES), blurpool, dropout, drop_path)
        channels = [scaled_channels(STEM * widen * 2**number, width) for number in range(len(STRIDES))]
        self.conv1 = conv3x3(in_channels, STEM)
        self.block1 = WideStage(STEM, channels[0], STRIDES[0], options[0])
        self.block2 = WideStage(channels[0], channels[1], STRIDES[1], options[1])
        self.block3 = WideStage(channels[1], channels[2], STRIDES[2], options[2])
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[2], num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(self.normalised(x)))))
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn1(x))), 1))


def wide_resnet28_10(num_classes: int = 10, **options: Any) -> WideResNet:
    """WRN-28-10; see `WideResNet` for the options."""
    return WideResNet(28, 10, num_classes, **options)


def wide_resnet34_10(num_classes: int = 10, **options: Any) -> WideResNet:
    """WRN-34-10; see `WideResNet` for the options."""
    return WideResNet(34, 10, num_classes, **options)
