"""Random noise as an attack: many points of the ball, without a look at the model but for its prediction.

The baseline of every other attack (Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5.3): whatever a
search finds less than chance does is no search.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kapdist.records.attack_plan import Norm
from kapdist.rng import derive_seed


class RandomNoise:
    """Tries random points at distance eps, then inside the ball, in turn.

    Args:
        model: images to logits.
        num_draws: points per image; those that have fallen are not asked again.
    """

    def __init__(self, model: nn.Module, norm: Norm, eps: float, num_draws: int) -> None:
        self.model, self.norm, self.eps, self.num_draws = model, norm, eps, num_draws
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
        delta = self.eps * on_the_sphere(images.shape, self.norm, random)
        if number % 2:
            delta *= torch.rand((len(images), 1, 1, 1), generator=random)
        return delta.to(images)


def on_the_sphere(shape: torch.Size, norm: Norm, random: torch.Generator) -> Tensor:
    """Return random tensors of norm 1 per image: a corner in Linf, else a uniform point of the sphere."""
    normal = torch.randn(shape, generator=random)
    if norm == "Linf":
        return torch.where(normal < 0, -1.0, 1.0)
    if norm == "L1":  # exponential sizes with random signs, divided by their sum
        normal = normal.sign() * torch.empty(shape).exponential_(generator=random)
    order = {"L2": 2, "L1": 1}[norm]
    return normal / torch.linalg.vector_norm(normal.flatten(1), order, dim=1).view(-1, 1, 1, 1)
