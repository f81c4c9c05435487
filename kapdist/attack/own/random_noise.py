"""Random noise as an attack: many points of the ball, without a look at the model but for its prediction.

The baseline of every other attack (Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5.3): whatever a
search finds less than chance does is no search.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.rng import derive_seed


class RandomNoise:
    """Tries random points at distance eps, then inside the ball, in turn.

    Args:
        model: images to logits.
        num_draws: points per image; those that have fallen are not asked again.
    """

    def __init__(self, model: nn.Module, ball: Ball, num_draws: int) -> None:
        self.model, self.ball, self.num_draws = model, ball, num_draws
        self.seed = 0

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, (batch, 3, height, width), the first point that is misclassified, else the image."""
        found = images.clone()
        left = torch.ones_like(labels, dtype=torch.bool)
        for number in range(self.num_draws):
            if not left.any():
                break
            # Every image draws, so that what an image is given does not depend on who is left.
            points = (images + self.draw(images, number)).clamp(0, 1)
            rows = left.nonzero().squeeze(1)
            fallen = rows[self.model(points[rows]).argmax(1) != labels[rows]]
            found[fallen], left[fallen] = points[fallen], False
        return found

    def draw(self, images: Tensor, number: int) -> Tensor:
        """Return perturbations: of size eps at even numbers, of a uniform share of it at odd ones."""
        random = torch.Generator().manual_seed(derive_seed(self.seed, "random noise", number))
        delta = self.ball.eps * self.ball.random_direction(images.shape, random)
        if number % 2:
            delta *= torch.rand((len(images), 1, 1, 1), generator=random)
        return delta.to(images)
