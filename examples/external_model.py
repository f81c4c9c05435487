"""A classifier from outside of kapdist: attack your own model in the same way.

    kapdist attack run runs/mine CONFIG model.factory=examples/external_model.py:build \
        model.weights=my_weights.safetensors data=FILE.beton num_classes=10

`build` takes no arguments and returns an nn.Module: images (batch, 3, height, width) in [0, 1] go in, logits
(batch, classes) come out. Normalisation is part of the model, softmax is not.
"""

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """An ordinary network with a normalisation of its own; nothing of kapdist is imported."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.286, 0.286, 0.286]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.353, 0.353, 0.353]).view(1, 3, 1, 1))
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, height, width) in [0, 1]."""
        return self.head(self.features((images - self.mean) / self.std).flatten(1))


def build() -> nn.Module:
    """Return the model, untrained here; its weights come from model.weights."""
    torch.manual_seed(0)
    return SmallCNN()
