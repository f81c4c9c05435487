"""Random images of a ball: each a function of (seed, identity), the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from kapdist.attack.ball import Ball
from kapdist.rng import Identity, derive_seed


def stream(seed: int, *identity: Identity) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *identity))


def direction(ball: Ball, images: Tensor, seed: int, *identity: Identity) -> Tensor:
    """Return random perturbations of norm 1, of the shape and type of the images."""
    return ball.random_direction(images.shape, stream(seed, *identity)).to(images)


def signs(images: Tensor, seed: int, *identity: Identity) -> Tensor:
    return direction(Ball("Linf", 1), images, seed, *identity)


def surface(ball: Ball, images: Tensor, seed: int, *identity: Identity) -> Tensor:
    """Return random images at distance eps, or where [0, 1] ends sooner: corners of Linf, the sphere of L2."""
    return ball.project(images + ball.eps * direction(ball, images, seed, *identity), images)


def interior(ball: Ball, images: Tensor, seed: int, *identity: Identity) -> Tensor:
    """Return random images of the ball: uniform in Linf; in L2 a random direction, a uniform distance."""
    random = stream(seed, *identity, "inside")
    if ball.norm == "Linf":
        delta = ball.random_point(images.shape, random)
    else:
        distance = torch.rand((len(images), 1, 1, 1), generator=random)
        delta = distance * ball.random_direction(images.shape, stream(seed, *identity))
    return ball.project(images + ball.eps * delta.to(images), images)
