"""The set of images that an attack may choose from: within eps of the clean one, and in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kapdist.rng import derive_seed


@dataclass(frozen=True)
class Ball:
    """Images within eps in Linf or L2; every method takes and returns (batch, channels, height, width)."""

    norm: Literal["Linf", "L2"]
    eps: float

    def resized(self, eps: float) -> Ball:
        return Ball(self.norm, eps)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the step of norm 1 that climbs fastest; where the gradient is not finite it counts as zero."""
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        if self.norm == "Linf":
            return gradient.sign()
        smallest = torch.finfo(gradient.dtype).tiny
        unit = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(
            min=smallest
        )  # squares that are numbers
        return unit / per_image_norm(unit).clamp(min=smallest)

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the points brought back into the ball around their images and into [0, 1]."""
        delta = points - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / per_image_norm(delta).clamp(min=self.eps))
        return (images + delta).clamp(0, 1)

    def surface(self, images: Tensor, seed: int, *identity: int | str) -> Tensor:
        """Return random images at distance eps, or where [0, 1] ends sooner: corners of Linf, the sphere of L2."""
        normal = standard_normal(images, seed, *identity)
        return self.project(images + self.eps * self.steepest(normal), images)

    def inside(self, images: Tensor, seed: int, *identity: int | str) -> Tensor:
        """Return random images of the ball: uniform in Linf; in L2 a random direction, a uniform distance."""
        random = torch.Generator().manual_seed(derive_seed(seed, *identity, "inside"))
        if self.norm == "Linf":
            delta = 2 * torch.rand(images.shape, generator=random) - 1
        else:
            distance = torch.rand((len(images), 1, 1, 1), generator=random)
            delta = distance * self.steepest(standard_normal(images, seed, *identity)).cpu()
        return self.project(images + self.eps * delta.to(images), images)

    def reach(self, gradient: Tensor) -> Tensor:
        """Return how far a linear function of this gradient rises within the ball, (batch,): eps x dual norm."""
        flat = gradient.flatten(1)
        return self.eps * (flat.abs().sum(1) if self.norm == "Linf" else flat.norm(dim=1))


def standard_normal(like: Tensor, seed: int, *identity: int | str) -> Tensor:
    """Return normal numbers of the shape and type of `like`, the same on every device."""
    random = torch.Generator().manual_seed(derive_seed(seed, *identity))
    return torch.randn(like.shape, generator=random).to(like)


def per_image_norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
