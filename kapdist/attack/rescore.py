"""The accuracy of a noisy model on given images: how many of N fresh draws are right, and what most of them say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.counted import CountedModel
from kapdist.records.attack_plan import AttackPlan


@dataclass(frozen=True)
class Votes:
    """How the draws of each of B images fell: counts (B, classes), integers."""

    counts: Tensor

    def correct(self, labels: Tensor) -> Tensor:
        """Return how many draws were right, (B,)."""
        return self.counts.gather(1, labels[:, None]).squeeze(1)

    @property
    def majority(self) -> Tensor:
        """Return the class of most draws, (B,); of several, the first."""
        return self.counts.argmax(1)


def cast_votes(model: CountedModel, images: Tensor, plan: AttackPlan, seed: int) -> Votes:
    """Return the votes of `plan.rescore` fresh draws for each image; to be called without gradients."""
    draws = AveragedModel(model, plan.rescore, plan.images_per_pass, seed, plan.draws_together)
    counts = torch.zeros(len(images), plan.model.num_classes, dtype=torch.int64, device=images.device)
    for part in draws.parts(len(images)):
        rows = part[1]
        said = draws.log_probabilities(images[rows], 0, part).argmax(2)  # (draws, rows)
        counts[rows] += torch.nn.functional.one_hot(said, plan.model.num_classes).sum(0)
    return Votes(counts)
