"""A network of nobody's in particular, as `model.factory` finds it: what kapdist's own ones do not have."""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """A parameter that belongs to no layer of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Net(nn.Module):
    """Depthwise and strided convolutions, dropout, a parameter of no layer, one without a use, shared weights."""

    def __init__(self, num_classes: int, channels: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 1, 2, bias=False),
            nn.BatchNorm2d(2 * channels),
            Scale(2 * channels),
        )
        self.again = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.twice = self.again
        self.unused = nn.Linear(3, 3)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images)).relu()
        features = self.twice(self.again(features).relu()).relu()
        return self.head(self.dropout(features.mean((2, 3))))


class Caching(nn.Module):
    """Weighs pixels by their place, with weights that it makes when it first sees an image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.places: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.linspace(0.5, 1, images.shape[-1])
        logits: Tensor = self.network(images * self.places)
        return logits


def build(num_classes: int = 10, **options: float) -> nn.Module:
    return Net(num_classes, **options)
