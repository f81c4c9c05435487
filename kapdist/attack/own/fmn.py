"""The smallest perturbation: FMN, Pintor et al. 2021, https://arxiv.org/abs/2102.12827, algorithm 1.

A step up the margin's gradient, then back to the ball of each image's own eps, which shrinks while the image is
misclassified and grows while it is not; step and shrinking are annealed. No eps is given: what is found is each
image's nearest misclassified point, an upper bound of its distance to the boundary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kapdist.attack.ball import DUAL, TINY, Ball, length, nearest
from kapdist.attack.watch import turned
from kapdist.records.attack_plan import Norm

STEP_SIZES: dict[Norm, tuple[float, float]] = {"Linf": (10.0, 0.1), "L2": (1.0, 0.01), "L1": (10.0, 0.1)}
RESIZING = 0.05, 1e-4  # of eps in a step, first and last
UNIT = Ball("L2", 1.0)


@dataclass
class State:
    """Where the search stands for B images; sizes are (B, 1, 1, 1)."""

    points: Tensor
    eps: Tensor
    best: Tensor
    """The nearest misclassified points, else the images themselves."""
    size: Tensor
    """Of the best perturbation; else that of the farthest image there is."""
    found: Tensor
    """(B, 1, 1, 1) bool: some point was misclassified."""


class FastMinimumNorm:
    """Searches, per image, for the nearest point of another class.

    Args:
        model: images to logits.
        num_steps: gradients per image.
    """

    def __init__(self, model: nn.Module, norm: Norm, num_steps: int) -> None:
        self.model, self.norm, self.num_steps = model, norm, num_steps

    def search(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, (batch, 3, height, width), the nearest misclassified point found, else the image."""
        farthest = length(torch.maximum(images, 1 - images), self.norm)
        nothing = torch.zeros_like(farthest)
        state = State(images, nothing, images, farthest, nothing.bool())
        for step in range(self.num_steps):
            cosine = (1 + math.cos(math.pi * step / self.num_steps)) / 2
            gradient, margin, wrong = self.margins(state.points, labels)
            size = length(state.points - images, self.norm)
            keep(state, size, wrong)
            slope = length(gradient, DUAL[self.norm]).clamp_min(TINY)
            resize(state, size + margin.abs() / slope, wrong, annealed(RESIZING, cosine))
            state.eps = state.eps.minimum(farthest)
            points = state.points - annealed(STEP_SIZES[self.norm], cosine) * UNIT.steepest(gradient)
            state.points = (images + nearest(points - images, self.norm, state.eps)).clamp(0, 1)
        return state.best

    def margins(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the margin's gradient, the margin, and where it is negative by more than rounding."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = self.model(points)
            own = logits.gather(1, labels[:, None]).squeeze(1)
            margin = own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad(margin.sum(), points)
        wrong = turned(logits.detach(), labels)
        return gradient, margin.detach().view(-1, 1, 1, 1), wrong.view(-1, 1, 1, 1)


def keep(state: State, size: Tensor, wrong: Tensor) -> None:
    """Remember the points that are misclassified and nearer than any before."""
    nearer = wrong & (size < state.size)
    state.best, state.size = torch.where(nearer, state.points, state.best), torch.where(nearer, size, state.size)
    state.found = state.found | wrong


def resize(state: State, plane: Tensor, wrong: Tensor, rate: float) -> None:
    """Shrink the eps of what is misclassified; the others' grows, first to where a plane would be crossed.

    Beyond the paper it grows at least at that rate before the first find too: where [0, 1] cuts perturbations
    short, they never reach that plane.
    """
    grown = state.eps * (1 + rate)
    grown = torch.where(state.found, grown, grown.maximum(plane))
    state.eps = torch.where(wrong, (state.eps * (1 - rate)).minimum(state.size), grown)


def annealed(ends: tuple[float, float], cosine: float) -> float:
    return ends[1] + (ends[0] - ends[1]) * cosine
