"""The loss around one image, along the gradient and a random direction, to be looked at.

Engstrom et al. 2018, https://arxiv.org/abs/1807.10272 show how a masked model's landscape looks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kapdist.attack.ball import Ball
from kapdist.sanity.points import direction
from kapdist.sanity.subject import Subject, cross_entropy

SIDE = 13
REACH = 2.0  # eps in both directions


def landscape(subject: Subject, image: Tensor, label: Tensor, ball: Ball, seed: int, draws: int) -> dict[str, Any]:
    """Return the cross-entropy on a grid around one image, (1, 3, height, width), in units of eps.

    `loss[i][j]` is at i steps along the gradient's direction and j along a random one, both of norm eps.
    """
    numbers = range(1, draws + 1) if draws > 1 else (0,)
    uphill = ball.steepest(subject.slope(image, label, cross_entropy, numbers)[0])
    aside = direction(ball, image, seed, "landscape")
    steps = torch.linspace(-REACH, REACH, SIDE).to(image)
    along, across = torch.meshgrid(steps, steps, indexing="ij")
    grid = [ball.eps * part.reshape(-1, 1, 1, 1) for part in (along, across)]
    points = (image + grid[0] * uphill + grid[1] * aside).clamp(0, 1)
    scores = subject.scores(points, numbers)
    loss = cross_entropy(scores, label.expand(len(points))).double().nan_to_num(posinf=1e30)
    return {"steps": steps.tolist(), "loss": loss.reshape(SIDE, SIDE).tolist()}
