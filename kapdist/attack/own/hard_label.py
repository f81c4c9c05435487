"""An attack that sees nothing but the predicted class: RayS, Chen & Gu 2020, https://arxiv.org/abs/2006.12792.

The boundary's distance along a ray is searched by bisection; rays are vectors of signs, whose blocks are flipped,
ever smaller ones, wherever that brings the boundary nearer. Neither gradients nor scores are asked for, so nothing
that hides them helps. Other norms than Linf divide the signs by their norm (a ray of the cube's corners all the
same): a valid attack there, not the best known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kapdist.attack.ball import Ball, black_to_white

BISECTED = 1e-3  # of eps: where a bisection ends


@dataclass
class Rays:
    """The best ray of each of B images: signs (B, values), the boundary's distance (B,), queries (B,)."""

    signs: Tensor
    distance: Tensor
    queries: Tensor


class RayS:
    """Searches, per image, for a ray whose boundary is nearer than eps.

    Args:
        model: images to logits, of which only the largest one's place is looked at.
        num_queries: predictions per image.
    """

    def __init__(self, model: nn.Module, ball: Ball, num_queries: int) -> None:
        self.model, self.ball, self.num_queries = model, ball, num_queries
        self.seed = 0
        """Unused: the search has no chance in it."""

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, (batch, 3, height, width), an image of another class within eps, else the image."""
        num_values = images[0].numel()
        size = black_to_white(self.ball.norm, num_values)  # the norm of a vector of signs
        rays = Rays(
            torch.ones(len(images), num_values, device=images.device),
            torch.full(labels.shape, torch.inf, device=images.device),
            torch.zeros_like(labels),
        )
        for start, end in blocks(num_values):
            rows = ((rays.distance > self.ball.eps) & (rays.queries < self.num_queries)).nonzero().squeeze(1)
            if not len(rows):
                break
            self.flip(rays, rows, slice(start, end), images, labels, size)
        fallen = rays.distance <= self.ball.eps
        found = images.clone()
        found[fallen] = along(images[fallen], rays.signs[fallen] / size, rays.distance[fallen])
        return found

    def flip(self, rays: Rays, rows: Tensor, block: slice, images: Tensor, labels: Tensor, size: float) -> None:
        """Flip a block of signs in the given rows, and keep the flip where the boundary comes nearer."""
        signs = rays.signs[rows]
        signs[:, block] *= -1
        distance = self.bisect(rays, rows, signs / size, images, labels, size)
        nearer = distance < rays.distance[rows]
        rays.signs[rows[nearer]], rays.distance[rows[nearer]] = signs[nearer], distance[nearer]

    def bisect(
        self, rays: Rays, rows: Tensor, direction: Tensor, images: Tensor, labels: Tensor, size: float
    ) -> Tensor:
        """Return the boundary's distance along each direction, infinity where it is not nearer than before."""
        high = rays.distance[rows].clamp(max=size)  # so far every value has reached 0 or 1
        crossed = self.is_other(rays, rows, direction, high, images, labels)
        low = torch.zeros_like(high)
        high = torch.where(crossed, high, torch.inf)
        while True:
            open_rows = crossed & (high - low > BISECTED * self.ball.eps) & (rays.queries[rows] < self.num_queries)
            todo = open_rows.nonzero().squeeze(1)
            if not len(todo):
                return high
            middle = (low[todo] + high[todo]) / 2
            other = self.is_other(rays, rows[todo], direction[todo], middle, images, labels)
            high[todo[other]], low[todo[~other]] = middle[other], middle[~other]

    def is_other(
        self, rays: Rays, rows: Tensor, direction: Tensor, distance: Tensor, images: Tensor, labels: Tensor
    ) -> Tensor:
        rays.queries[rows] += 1
        predicted = self.model(along(images[rows], direction, distance)).argmax(1)
        other: Tensor = predicted != labels[rows]
        return other


def along(images: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    """Return the images moved along (B, values) directions by (B,) distances, kept in [0, 1]."""
    return (images + (distance[:, None] * direction).view_as(images)).clamp(0, 1)


def blocks(num_values: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the blocks to flip: the whole, its halves, its quarters, ..., single values; again."""
    while True:
        count = 1
        while count < 2 * num_values:
            size = -(-num_values // count)
            for start in range(0, num_values, size):
                yield start, min(start + size, num_values)
            count *= 2
