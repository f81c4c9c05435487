"""Three convolutions for small images, with as many kernels as an ensemble of such networks has."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kapdist.models.convolutions import conv3x3, initialise
from kapdist.models.images import ImageNetwork
from kapdist.models.widths import square_channels

SIDES = (8, 12, 15)  # of each convolution's sheet: 64, 144 and 225 kernels


class CNN(ImageNetwork):
    """Three 3 x 3 convolutions, each with a norm and an activation, for images in [0, 1]; see `ImageNetwork`.

    A max pool stands behind the first and the third, then the average over all pixels (8 x 8 of an image of 32 px)
    and a linear layer. Every number of kernels is a square, so they lie on square sheets.

    Arguments:
        expansion: e, the convolutions have 64 e^2, 144 e^2 and 225 e^2 kernels: as many as e^2 networks of e = 1.
        width: scales the numbers of kernels; they stay squares, see `square_channels`.
        dropout: probability of dropping an activation behind each convolution, in training.

    Shapes: (batch, in_channels, height, width) to logits (batch, num_classes).
    Raises: ValueError for an expansion below 1, a width not above 0, mean or std of another number of channels.
    Source: the CIFAR network of Kernel Average Pooling's authors (Bashivan et al. 2022, arXiv 2210.00062).
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        expansion: int = 1,
        width: float = 1.0,
        in_channels: int = 3,
        dropout: float = 0.0,
        normalise: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, normalise, mean, std)
        if expansion < 1:
            raise ValueError(f"expansion must be 1 or more, found {expansion}")
        channels = [square_channels(side * expansion, width) for side in SIDES]
        self.conv1 = conv3x3(in_channels, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.conv2 = conv3x3(channels[0], channels[1])
        self.bn2 = nn.BatchNorm2d(channels[1])
        self.conv3 = conv3x3(channels[1], channels[2])
        self.bn3 = nn.BatchNorm2d(channels[2])
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.maxpool = nn.MaxPool2d(2, ceil_mode=True)  # an odd side keeps its last pixels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[2], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.dropout(self.relu(self.bn1(self.conv1(self.normalised(x))))))
        x = self.dropout(self.relu(self.bn2(self.conv2(x))))
        x = self.maxpool(self.dropout(self.relu(self.bn3(self.conv3(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
