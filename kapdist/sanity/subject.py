"""The model under examination: every forward pass belongs to a numbered draw of its randomness.

Draw number k always means the same random numbers, whatever the model takes them from (its noise, torch,
NumPy or Python). So two passes can be compared with their randomness equal, or with it different, and what still
differs has a cause.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kapdist.attack.averaged import log_mean
from kapdist.kap import noise
from kapdist.rng import derive_seed

LEAST_SPREAD = 1.5  # mean distance of a logit from its image's mean; over images honest networks have 1.9 to 3

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image, (batch,)."""
    return functional.cross_entropy(logits, labels, reduction="none")


def sharp_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image, its logits spread out at least as a trained network's, (batch,).

    A small factor on all logits changes no prediction, but it levels the softmax until the cross-entropy climbs
    towards all other classes alike and misses the nearest. An attacker divides by it first, and so does this loss.
    Logits that are spread out already keep their differences: a softmax that they saturate is a finding.
    """
    centred = logits - logits.detach().mean(1, keepdim=True)
    spread = centred.detach().abs().mean(1, keepdim=True)  # no squares: those of small logits are zero
    factor = (LEAST_SPREAD / spread.clamp(min=torch.finfo(spread.dtype).tiny)).clamp(min=1)
    return cross_entropy(factor * centred, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best other logit less the label's, (batch,): above zero the image is misclassified.

    The loss f6 of Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644: no softmax, so nothing saturates.
    """
    label = functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(label, -math.inf).amax(1) - logits[label]


class Subject:
    """A classifier with its randomness in hand.

    Args:
        model: in eval mode, frozen; images (batch, 3, height, width) in [0, 1] to logits (batch, classes).
        mode: of its noise: off, fixed or fresh. With fixed there is one draw, number 0.
        seed: draws follow from it.
        batch_size: largest number of images in one pass.
    """

    def __init__(self, model: nn.Module, mode: str, seed: int, batch_size: int) -> None:
        self.model, self.mode, self.seed, self.batch_size = model, mode, seed, batch_size
        self.used = 0
        self.forwards = self.backwards = 0

    def like(self, model: nn.Module, batch_size: int | None = None) -> Subject:
        """Return another model under the same draws."""
        return Subject(model, self.mode, self.seed, batch_size or self.batch_size)

    def fresh(self, count: int) -> range:
        """Return the numbers of draws that have not been used."""
        self.used += count
        return range(self.used - count + 1, self.used + 1)

    def logits(self, images: Tensor, draw: int = 0) -> Tensor:
        """Return the logits of one draw, (batch, classes)."""
        with torch.no_grad():
            return torch.cat([self.forward(part, draw) for part in images.split(self.batch_size)])

    def scores(self, images: Tensor, draws: Sequence[int] = (0,)) -> Tensor:
        """Return the log of the mean probability over draws; of one draw, its logits as they are."""
        if len(draws) == 1:
            return self.logits(images, draws[0])
        return log_mean(torch.stack([self.logits(images, draw).log_softmax(1) for draw in draws]))

    def slope(
        self, images: Tensor, labels: Tensor, loss: Loss, draws: Sequence[int] = (0,)
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the mean loss over draws, shaped like the images, and the mean margin, (batch,).

        Athalye et al. 2018, https://arxiv.org/abs/1707.07397 (expectation over transformation). A model whose
        logits do not depend differentiably on the images has a gradient of zeros.
        """
        gradient, margins = torch.zeros_like(images), images.new_zeros(len(images))
        for part in torch.arange(len(images), device=images.device).split(self.batch_size):
            for draw in draws:
                points = images[part].detach().requires_grad_()
                with torch.enable_grad():
                    logits, found = self.derivative(points, labels[part], loss, draw)
                gradient[part] += found / len(draws)
                margins[part] += margin(logits.detach(), labels[part]).to(margins.dtype) / len(draws)
        return gradient, margins

    def derivative(self, points: Tensor, labels: Tensor, loss: Loss, draw: int) -> tuple[Tensor, Tensor]:
        with self.drawn(draw):
            logits: Tensor = self.model(points)
            self.forwards += len(points)
            if not logits.requires_grad:
                return logits, torch.zeros_like(points)
            self.backwards += len(points)
            found = torch.autograd.grad(loss(logits, labels).sum(), points, allow_unused=True)[0]
        return logits, torch.zeros_like(points) if found is None else found

    def forward(self, images: Tensor, draw: int) -> Tensor:
        with self.drawn(draw):
            self.forwards += len(images)
            logits: Tensor = self.model(images)
            return logits.detach()

    @contextlib.contextmanager
    def drawn(self, draw: int) -> Iterator[None]:
        """Put every random stream at this draw; whoever drew before goes on where he stood."""
        seed = derive_seed(self.seed, "draw", 0 if self.mode == "fixed" else draw)
        before = random.getstate(), np.random.get_state()
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices), noise(self.model, self.mode, seed=seed):
            torch.default_generator.manual_seed(
                seed
            )  # torch.manual_seed keeps a list of its calls until CUDA is used
            if devices:
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            try:
                yield
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])

    def as_float64(self, images: Tensor) -> Subject | None:
        """Return the same model in double precision; None where it cannot compute in it."""
        try:
            other = Subject(copy.deepcopy(self.model).double(), self.mode, self.seed, self.batch_size)
            return other if other.logits(images[:1].double()).dtype == torch.float64 else None
        except Exception:  # whatever a model of somebody else does with a type that it was not written for
            return None
