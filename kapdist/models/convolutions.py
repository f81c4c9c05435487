"""The convolutions that the networks are made of, and how their weights begin."""

from torch import nn


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / (kernel's pixels x output channels)).

    Source: He et al. 2015, arXiv 1502.01852, section 2.2, in the form of the backward pass, as torchvision and the
    published pre-activation networks do.
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d) and not module.weight.is_meta
        ):  # torch would import its compiler to draw none
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
