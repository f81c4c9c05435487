"""What all networks begin with: images in [0, 1], normalised or as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageNetwork(nn.Module):
    """A network for images in [0, 1]; their normalisation is its first step.

    Arguments:
        normalise: without it images stay as they are, mean and std are not read, and those of the network are 0
            and 1.
        mean, std: of the images' channels, in units of [0, 1]; ImageNet's by default, and for other than 3
            channels the mean of ImageNet's. They are no part of the state_dict.

    Raises: ValueError for mean or std of another number of channels.
    """

    UNUSED: tuple[str, ...] = ()
    """What begins the keys of published files that no layer has, since nothing ever called it."""
    mean: Tensor
    std: Tensor

    def __init__(
        self, in_channels: int, normalise: bool, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.normalise = normalise
        if not normalise:
            mean, std = [0.0] * in_channels, [1.0] * in_channels
        self.register_buffer("mean", _per_channel(mean, IMAGENET_MEAN, in_channels, "mean"), persistent=False)
        self.register_buffer("std", _per_channel(std, IMAGENET_STD, in_channels, "std"), persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std if self.normalise else x


def _per_channel(given: Sequence[float] | None, imagenet: Sequence[float], channels: int, name: str) -> Tensor:
    if given is None:
        given = imagenet if channels == len(imagenet) else [sum(imagenet) / len(imagenet)] * channels
    if len(given) != channels:
        raise ValueError(f"{name} must have one number for each of the {channels} channels, found {len(given)}")
    return torch.tensor(given, dtype=torch.float32).view(1, channels, 1, 1)
