"""Adversarial images for training: where an attack starts, which way it goes, how far it may.

Projected gradient ascent: Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1. One step of it from a
random start is the fast attack of Wong et al. 2020, https://arxiv.org/abs/2001.03994, algorithm 3; one step of size
eps from the image is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kapdist.rng import derive_seed

GRADIENT_SCALE = 2.0**8  # a power of two rounds nothing; without it fp16 gradients of images underflow
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Ball:
    """Where the adversarial images of a batch may lie: within eps of the images, and in [0, 1].

    A value that input noise has taken out of [0, 1] may stay where it is, and go no further out.

    Args:
        images: (batch, channels, height, width).
        norm: "Linf" or "L2", of each image's perturbation.
    """

    images: Tensor
    norm: str
    eps: float

    def project(self, points: Tensor) -> Tensor:
        """Return the nearest points of the ball, then cut them to [0, 1], which takes none of them out of it."""
        low, high = self.images.clamp(max=0), self.images.clamp(min=1)
        if self.norm == "Linf":
            low, high = low.maximum(self.images - self.eps), high.minimum(self.images + self.eps)
            return points.clamp(low, high)
        delta = points - self.images
        return (self.images + delta * (self.eps / lengths(delta).clamp_min(TINY)).clamp(max=1)).clamp(low, high)

    def ascend(self, points: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Return the points one step further up their gradient: by its sign, or by its direction for L2."""
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # fp16 may overflow: no step there
        direction = gradient.sign() if self.norm == "Linf" else gradient / lengths(gradient).clamp_min(TINY)
        return self.project(points + step_size * direction)


def lengths(vectors: Tensor) -> Tensor:
    """Return the L2 norm of each image, (batch, 1, 1, 1)."""
    return torch.linalg.vector_norm(vectors, dim=(1, 2, 3), keepdim=True)


def random_start(ball: Ball, seed: int, epoch: int, ids: Sequence[int]) -> Tensor:
    """Return points drawn uniformly from the ball, then cut to [0, 1]: functions of (seed, epoch, image id) alone.

    They depend neither on the batch nor on the rank, the memory format or the number of processes.
    """
    delta = torch.empty_like(ball.images)
    generator = torch.Generator(delta.device)
    for perturbation, image in zip(delta, ids, strict=True):
        generator.manual_seed(derive_seed(seed, "adversarial start", epoch, image))
        perturbation.copy_(draw(ball.norm, perturbation, generator))
    return ball.project(ball.images + ball.eps * delta)


def draw(norm: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return a point of the unit ball around zero, (channels, height, width), contiguous."""
    point = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if norm == "Linf":
        return point.uniform_(-1, 1, generator=generator)
    point.normal_(generator=generator)
    radius = torch.rand((), generator=generator, device=like.device) ** (1 / point.numel())
    return point * (radius / torch.linalg.vector_norm(point).clamp_min(TINY))


def pgd(loss_of: Callable[[Tensor], Tensor], ball: Ball, start: Tensor, step_size: float, steps: int) -> Tensor:
    """Return adversarial images after `steps` of projected gradient ascent on a loss, detached.

    Gradients are of the images alone: those of the parameters are neither computed nor touched.

    Args:
        loss_of: the loss of a batch of images, summed over images, a scalar.
        start: points of the ball, (batch, channels, height, width).
    """
    points = start.detach()
    for _ in range(steps):
        points.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(GRADIENT_SCALE * loss_of(points), points)
        points = ball.ascend(points.detach(), gradient, step_size)
    return points
