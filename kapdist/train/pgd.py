"""Adversarial images for training: where an attack starts, and how it climbs.

Projected gradient ascent: Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1. One step of it from a
random start is the fast attack of Wong et al. 2020, https://arxiv.org/abs/2001.03994, algorithm 3; one step of size
eps from the image is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572). The sanity report's own, whose
every step is looked at, has the ball's step in common with it and keeps the best point besides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kapdist.attack.ball import Ball
from kapdist.rng import derive_seed

GRADIENT_SCALE = 2.0**8  # a power of two rounds nothing; without it fp16 gradients of images underflow


def random_start(
    ball: Ball, images: Tensor, seed: int, epoch: int, ids: Sequence[int], std: float | None = None
) -> Tensor:
    """Return random points of the ball, cut to [0, 1]: functions of (seed, epoch, image id) alone.

    They depend neither on the batch nor on the rank, the memory format or the number of processes. They are uniform
    in the ball, or normal about the image where there is a standard deviation.
    """
    delta = torch.empty_like(images)
    generator = torch.Generator(delta.device)
    for perturbation, image in zip(delta, ids, strict=True):
        generator.manual_seed(derive_seed(seed, "adversarial start", epoch, image))
        shape = perturbation.shape
        if std is None:
            drawn = ball.eps * ball.random_point(shape, generator)
        else:
            drawn = torch.empty(shape, device=delta.device).normal_(0, std, generator=generator)
        perturbation.copy_(drawn)
    return ball.project(images + delta, images)


def pgd(
    loss_of: Callable[[Tensor], Tensor], ball: Ball, images: Tensor, start: Tensor, step_size: float, steps: int
) -> Tensor:
    """Return adversarial images after `steps` of projected gradient ascent on a loss, detached.

    Gradients are of the images alone: those of the parameters are neither computed nor touched.

    Args:
        loss_of: the loss of a batch of images, summed over images, a scalar.
        images: (batch, channels, height, width), the middle of the ball.
        start: points of the ball, shaped like the images.
    """
    points = start.detach()
    for _ in range(steps):
        points.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(GRADIENT_SCALE * loss_of(points), points)
        points = ball.ascend(points.detach(), images, gradient, step_size)
    return points
