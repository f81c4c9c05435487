"""Robust validation: how many of some validation images a short PGD leaves, between steps of the training.

It changes nothing that the training depends on: images are chosen by seed, their starts are functions of (seed,
image), the noise is one of (seed, batch, pass, draw), and batches are cut before they are dealt to the ranks. So
the numbers are the same to the last bit on any number of ranks, of one kind of device and as many threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist import kap
from kapdist.attack.averaged import log_mean
from kapdist.attack.ball import Ball
from kapdist.data.load.loader import Batch, Loader
from kapdist.engine import Ranks
from kapdist.engine.numerics import tensor_float_32, trying_algorithms
from kapdist.plan.robust import RobustPlan
from kapdist.rng import derive_seed
from kapdist.train.adversarial import evaluating, frozen
from kapdist.train.alarms import Alarm, Watched, new_alarms
from kapdist.train.evaluate import deal, places
from kapdist.train.metrics import LossMeter
from kapdist.train.pgd import pgd, random_start


@dataclass(frozen=True)
class RobustAccuracy:
    """Counts over all images and ranks."""

    num_images: int
    num_clean: int
    """Images that are recognised before the attack."""
    num_robust: int
    """Of these, the ones that are recognised after it too."""
    loss_sum: float
    """Cross-entropy of the attacked images."""

    @property
    def accuracy(self) -> float:
        return self.num_robust / self.num_images

    def describe(self) -> dict[str, int | float]:
        return {
            "accuracy": self.accuracy,
            "clean_accuracy": self.num_clean / self.num_images,
            "loss": self.loss_sum / self.num_images,
            "num_images": self.num_images,
        }


class RobustValidation:
    """Attacks the model of a run from time to time, and watches what becomes of its accuracy.

    The history and the meter are part of the state.
    """

    def __init__(self, plan: RobustPlan, loader: Loader, seed: int, ranks: Ranks) -> None:
        self.plan, self.loader, self.seed, self.ranks = plan, loader, seed, ranks
        self.ball = Ball(plan.norm, plan.eps)
        self.meter = LossMeter(ranks)
        self.history: list[Watched] = []

    def withstood(self, model: nn.Module, stopped: Callable[[], bool]) -> RobustAccuracy | None:
        """Attack a model in evaluation mode and fp32, every rank its share of the batches.

        Args:
            stopped: asked after every batch that all ranks have; where it says so, there is no result.
        """
        dealt = deal(self.plan.images, self.plan.batch_size, self.ranks)
        batches = self.loader.batches(dealt.batches)
        rows: list[list[float]] = []
        with evaluating(model), frozen(model), tensor_float_32(False), trying_algorithms(False):
            for done, (number, batch) in enumerate(zip(dealt.numbers, batches, strict=True)):
                rows.append(self.attacked(model, batch, number))
                if done < dealt.num_common and stopped():
                    return None
        whole = [row for own in self.ranks.gather(rows) for row in own]
        clean, robust, loss = (sum(column) for column in zip(*whole, strict=True))
        return RobustAccuracy(len(self.plan.images), int(clean), int(robust), loss)

    def attacked(self, model: nn.Module, batch: Batch, number: int) -> list[float]:
        """Return how many images of a batch are right, how many stay so under attack, and the summed loss then."""
        images, labels, plan = batch.images, batch.labels, self.plan
        logits_of = Passes(model, plan, self.seed, number)
        start = random_start(
            self.ball, images, derive_seed(self.seed, "robust validation"), 0, batch.indices.tolist()
        )

        def loss_of(points: Tensor) -> Tensor:
            return F.cross_entropy(logits_of(points), labels, reduction="sum")

        points = pgd(loss_of, self.ball, images, start, plan.step_size, plan.steps)
        with torch.no_grad():
            right = places(logits_of(images), labels) < 1
            logits = logits_of(points)
            loss = F.cross_entropy(logits.double(), labels, reduction="sum")
            robust = right & (places(logits, labels) < 1)
        return torch.stack([right.sum().double(), robust.sum().double(), loss]).tolist()

    def watch(self, epoch: float, found: RobustAccuracy) -> list[Alarm]:
        """Add a result to the history, with the training loss since the one before; return the alarms it gives."""
        self.history.append(Watched(epoch, found.accuracy, self.meter.mean_if_any()))
        return new_alarms(self.history, found.num_images)

    def state(self) -> list[list[float | None]]:
        return [list(seen) for seen in self.history]

    def load_state(self, state: list[list[Any]] | None) -> None:
        self.history = [Watched(*seen) for seen in state or []]


class Passes:
    """Logits of one batch, pass after pass, each under noise of its own where there is noise."""

    def __init__(self, model: nn.Module, plan: RobustPlan, seed: int, number: int) -> None:
        self.model, self.plan, self.seed, self.number = model, plan, seed, number
        self.passes = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, or of several draws the log of the mean probability, (batch, classes)."""
        self.passes += 1
        draws = [self.draw(images, draw) for draw in range(self.plan.draws)]
        if len(draws) == 1:
            return draws[0]
        return log_mean(torch.stack([logits.double().log_softmax(1) for logits in draws]))

    def draw(self, images: Tensor, draw: int) -> Tensor:
        seed = derive_seed(self.seed, "robust validation noise", self.number, self.passes, draw)
        with kap.noise(self.model, self.plan.noise, seed):
            logits: Tensor = self.model(images)
            return logits
