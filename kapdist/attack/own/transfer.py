"""Adversarial images of another model: what breaks that one may break this one, whose gradients were never asked.

APGD on a surrogate, as a short way to strong transfers: its own momentum is what Dong et al. 2018
(https://arxiv.org/abs/1710.06081) found to make images transfer. The points of highest loss are taken, whether or
not the surrogate fell, first for cross entropy, then for the difference of logits ratio.
"""

from __future__ import annotations

import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

LOSSES = "ce", "dlr"


class Transfer:
    """Attacks the surrogate and tries what comes of it on the model.

    Args:
        model: images to logits; only asked for its predictions.
        attack: APGD on the surrogate; its seed is set with `seed`.
        num_classes: with fewer than three the second loss does not exist.
    """

    def __init__(self, model: nn.Module, attack: APGDAttack, num_classes: int) -> None:
        self.model, self.attack, self.num_classes = model, attack, num_classes
        self.seed = 0

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, (batch, 3, height, width), the image that the model takes for another class, else the image."""
        found = images.clone()
        left = torch.arange(len(labels), device=labels.device)
        for loss in LOSSES[: 1 if self.num_classes < 3 else 2]:
            if not len(left):
                break
            points = self.points(images[left], labels[left], loss)
            fallen = self.model(points).argmax(1) != labels[left]
            found[left[fallen]] = points[fallen]
            left = left[~fallen]
        return found

    def points(self, images: Tensor, labels: Tensor, loss: str) -> Tensor:
        """Return the points of the surrogate's highest loss within eps."""
        torch.manual_seed(self.seed)
        self.attack.loss = loss
        with torch.enable_grad():
            points: Tensor = self.attack.perturb(images, labels, best_loss=True)
        return points.detach()
