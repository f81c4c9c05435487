"""A network of your own that kapdist trains, with Kernel Average Pooling or without: examples/own_network.yaml.

    kapdist train examples/own_network.yaml

`build` is called with `model.arguments`. Images come normalised by `model.mean` and `model.std`, logits
(batch, classes) go out. Nothing of kapdist is imported, and the weights keep this network's own names.
"""

from torch import Tensor, nn


class Block(nn.Module):
    """A depthwise and a pointwise convolution around a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return (x + self.norm2(self.pointwise(self.norm(self.depthwise(x)).relu()))).relu()


class SmallNetwork(nn.Module):
    """A stem of stride 4, blocks, and a linear layer on the mean of their maps."""

    def __init__(self, num_classes: int, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(num_blocks)))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, height, width)."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def build(num_classes: int, channels: int = 32, num_blocks: int = 2) -> nn.Module:
    """Return the network with its initial weights, drawn from torch's generator, which the run's seed decides."""
    return SmallNetwork(num_classes, channels, num_blocks)
