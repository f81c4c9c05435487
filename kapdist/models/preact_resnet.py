"""ResNets with norm and activation before each convolution (He et al. 2016, arXiv 1603.05027), for small images."""

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


class PreActivation(nn.Module):
    """Norm, activation and a 3 x 3 convolution, twice, around a shortcut.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the first activation, without a norm of its own;
    elsewhere it is the input. What the convolution is called is each network's own.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.blur = blur_before(in_channels, stride, options.blurpool)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = conv3x3(channels, channels)
        self.drop_path = drop_path(options.drop_path)

    @property
    def projection(self) -> nn.Module | None:
        """The shortcut's convolution, where there is one."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        activated = self.blur(self.relu(self.bn1(x)))
        kept = x if self.projection is None else self.projection(activated)
        out = self.dropout(self.relu(self.bn2(self.conv1(activated))))
        return kept + self.drop_path(self.conv2(out))


def projection(in_channels: int, channels: int, stride: int) -> nn.Conv2d | None:
    same = stride == 1 and in_channels == channels
    return None if same else conv1x1(in_channels, channels, stride)


class PreActBlock(PreActivation):
    """The block of a PreActResNet: its projection is `shortcut.0`."""

    def __init__(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        super().__init__(in_channels, channels, stride, options)
        conv = projection(in_channels, channels, stride)
        self.shortcut = None if conv is None else nn.Sequential(conv)

    @property
    def projection(self) -> nn.Module | None:
        return self.shortcut


class PreActResNet(ImageNetwork):
    """A pre-activation ResNet with a 3 x 3 stem for images in [0, 1]; see `ResNet` for the options.

    The last maps have a norm and an activation of their own before the average over all pixels, as in the paper.
    State keys are those of the robustness literature's checkpoints (Wong et al. 2020, arXiv 2001.03994; Rice et al.
    2020, arXiv 2002.11569), which are of images that are not normalised, or normalised outside of the model.

    Shapes: (batch, in_channels, height, width) to logits (batch, num_classes).
    Raises: ValueError as `ResNet` does.
    Source: He et al. 2016, arXiv 1603.05027; initialised as our other networks.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 10,
        *,
        width: float = 1.0,
        widths: Widths = "doubling",
        in_channels: int = 3,
        blurpool: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        normalise: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, normalise, mean, std)
        channels = stage_channels(widths, width)
        options = options_of_blocks(depths, blurpool, dropout, drop_path)
        self.conv1 = conv3x3(in_channels, channels[0])
        self.layer1 = stage(PreActBlock, channels[0], channels[0], 1, options[0])
        self.layer2 = stage(PreActBlock, channels[0], channels[1], 2, options[1])
        self.layer3 = stage(PreActBlock, channels[1], channels[2], 2, options[2])
        self.layer4 = stage(PreActBlock, channels[2], channels[3], 2, options[3])
        self.bn = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels[3], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalised(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))


def preact_resnet18(num_classes: int = 10, **options: Any) -> PreActResNet:
    """PreActResNet-18; see `PreActResNet` for the options."""
    return PreActResNet((2, 2, 2, 2), num_classes, **options)
