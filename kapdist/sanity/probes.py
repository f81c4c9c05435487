"""Small attacks whose every step can be watched: AutoAttack decides verdicts, these say whether to believe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kapdist.attack.ball import Ball
from kapdist.attack.stock import square_alone
from kapdist.rng import derive_seed
from kapdist.sanity.points import interior
from kapdist.sanity.subject import Loss, Subject, sharp_cross_entropy

STEP = 0.25  # of eps, as Madry et al. 2018 step by 2/255 in a ball of 8/255


@dataclass(frozen=True)
class Ascent:
    """What one PGD run found: after iteration k the images `found[k]` had the largest margin so far."""

    found: dict[int, Tensor]
    margins: Tensor
    """(iterations + 1, batch): the largest margin so far, of the draws that the attack saw."""

    @property
    def last(self) -> Tensor:
        return self.found[max(self.found)]


def pgd(
    subject: Subject,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    iterations: int,
    seed: int,
    draws: int = 1,
    loss: Loss = sharp_cross_entropy,
    restart: int = 0,
    watched: Sequence[int] = (),
    step: float = STEP,
    start: Tensor | None = None,
    numbers: Sequence[int] | None = None,
) -> Ascent:
    """Projected gradient ascent from a random start: Madry et al. 2018, https://arxiv.org/abs/1706.06083.

    The step stays the same, so the first k iterations of a longer run are a run of k iterations.

    Args:
        start: where it starts instead.
        numbers: of the draws, the same at every iteration; default: `draws` fresh ones.
    """
    points = interior(ball, images, seed, "pgd", restart) if start is None else start
    best, highest = points.clone(), torch.full_like(images[:, 0, 0, 0], -torch.inf)
    found, margins = {}, []
    for iteration in range(iterations + 1):
        gradient, margin = subject.slope(points, labels, loss, numbers or subject.fresh(draws))
        better = margin > highest
        best[better], highest = points[better], torch.maximum(highest, margin)
        margins.append(highest)
        if iteration in watched or iteration == iterations:
            found[iteration] = best.clone()
        points = ball.ascend(points, images, gradient, step * ball.eps)
    return Ascent(found, torch.stack(margins))


def fgsm(subject: Subject, images: Tensor, labels: Tensor, ball: Ball, draws: int = 1) -> Tensor:
    """One step of size eps from the clean image: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572."""
    gradient, _ = subject.slope(images, labels, sharp_cross_entropy, subject.fresh(draws))
    return ball.ascend(images, images, gradient, ball.eps)


def square(
    subject: Subject, images: Tensor, labels: Tensor, ball: Ball, *, queries: int, seed: int, draws: int = 1
) -> Tensor:
    """The Square attack, which sees scores alone: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049."""

    def scores(points: Tensor) -> Tensor:
        return subject.scores(points, subject.fresh(draws))

    seed = derive_seed(seed, "square") % 2**32
    found = square_alone(scores, images, labels, norm=ball.norm, eps=ball.eps, queries=queries, seed=seed)
    return ball.project(found, images)
