"""Expectation over the noise inside the model: n draws of every image, the log of their mean probability.

An attack that averages gradients alone (Athalye et al. 2018, https://arxiv.org/abs/1802.00420, as most libraries
do it) takes its loss, its best point and its success from single draws. Here the average is the model: whatever the
attack looks at is the same average, and gradient-free attacks see it too.

Draws are a function of (seed, call, part): the noise of a pass can be drawn again, so that its gradient can be
worked out part by part in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.attack.counted import CountedModel
from kapdist.rng import derive_seed

Part = tuple[int, slice, int]  # number, rows of the batch, draws of each


class AveragedModel(nn.Module):
    """A noisy classifier whose logits are log(mean over n draws of softmax).

    Args:
        model: the noisy model; draws torch's global random numbers, or kapdist's noise.
        num_draws: n.
        images_per_pass: rows of the largest batch that the model is given at once, the bound on memory. If n
            times the batch exceeds it, a gradient costs a second forward pass of every part.
        seed: every draw follows from it and from the number of the call.
        together: draws may share one batch, as noise differs from row to row. Else each draw is a pass.
    """

    def __init__(
        self, model: CountedModel, num_draws: int, images_per_pass: int, seed: int, together: bool = True
    ) -> None:
        super().__init__()
        self.model, self.num_draws, self.images_per_pass = model, num_draws, images_per_pass
        self.seed, self.together = seed, together
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        call, self.calls = self.calls, self.calls + 1
        if not len(images):  # Square asks so, where every margin that is left is exactly 0
            nobodys: Tensor = self.model(images)
            return nobodys
        if images.requires_grad and torch.is_grad_enabled() and len(list(self.parts(len(images)))) > 1:
            averaged: Tensor = _Recomputed.apply(images, self, call)
            return averaged
        return self.average(images, call)

    def average(self, images: Tensor, call: int) -> Tensor:
        """Return log mean probability, (batch, classes), of the draws of one call."""
        columns: dict[int, list[Tensor]] = {}
        for part in self.parts(len(images)):
            columns.setdefault(part[1].start, []).append(self.log_probabilities(images[part[1]], call, part))
        return torch.cat([log_mean(torch.cat(draws)) for draws in columns.values()])

    def parts(self, batch: int) -> Iterator[Part]:
        """Yield the passes of a batch, none with more rows than `images_per_pass`."""
        rows = min(batch, self.images_per_pass)
        at_once = max(1, self.images_per_pass // rows) if self.together else 1
        number = 0
        for start in range(0, batch, rows):
            for first in range(0, self.num_draws, at_once):
                yield number, slice(start, min(start + rows, batch)), min(at_once, self.num_draws - first)
                number += 1

    def log_probabilities(self, images: Tensor, call: int, part: Part) -> Tensor:
        """Return the draws of one pass, (draws, rows, classes)."""
        number, _, draws = part
        self.model.reseed(derive_seed(self.seed, call, number))
        logits = self.model(images.repeat(draws, 1, 1, 1) if draws > 1 else images)
        return logits.float().log_softmax(dim=1).view(draws, len(images), -1)


def log_mean(log_probabilities: Tensor) -> Tensor:
    """Return the log of the mean probability over draws: (draws, batch, classes) to (batch, classes)."""
    return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))


class _Recomputed(torch.autograd.Function):
    """The average without its graph: the backward pass draws the same noise again, part by part."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: AveragedModel, call: int) -> Tensor:
        averaged = model.average(images, call)
        ctx.save_for_backward(images, averaged)
        ctx.model, ctx.call = model, call
        return averaged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        images, averaged = ctx.saved_tensors
        model, gradient = ctx.model, torch.zeros_like(images)
        for part in model.parts(len(images)):
            rows = part[1]
            with torch.enable_grad():
                own = images[rows].detach().requires_grad_()
                draws = model.log_probabilities(own, ctx.call, part)
            # d log(mean p) / d log p_i is p_i's share of the sum.
            share = (draws.detach() - averaged[rows] - math.log(model.num_draws)).exp()
            gradient[rows] += torch.autograd.grad(draws, own, share * gradients[0][rows])[0]
        return gradient, None, None
