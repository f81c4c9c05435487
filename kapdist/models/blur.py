"""BlurPool: a binomial low-pass filter before a strided convolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_CHANNELS = 16  # ffcv-imagenet blurs before strided convolutions with at least so many input channels


class Blur(nn.Module):
    """Each channel convolved with the 3 x 3 binomial filter [1, 2, 1] x [1, 2, 1] / 16, zero-padded.

    The filter is no part of the state_dict, so that a blurred ResNet keeps torchvision's keys.

    Shapes: (batch, channels, height, width), kept.
    Source: Zhang 2019, arXiv 1904.11486; placed as in ffcv-imagenet.
    """

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(line, line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.filter.expand(channels, 1, 3, 3), padding=1, groups=channels)


def blur_before(in_channels: int, stride: int, wanted: bool) -> nn.Module:
    """What stands before a convolution of this stride: a Blur, or nothing."""
    return Blur() if wanted and stride > 1 and in_channels >= MIN_CHANNELS else nn.Identity()
