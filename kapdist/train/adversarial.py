"""The attack inside of a training step: from where, how far, against the model in which mode; and what it did.

What decides it is a function of (seed, epoch, image) or of (seed, step), or saved with the model: it has no state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.attack.ball import Ball
from kapdist.config import Config
from kapdist.engine import Engine, Ranks
from kapdist.plan.adversarial import AdversarialPlan
from kapdist.plan.training import Plan
from kapdist.rng import derive_seed
from kapdist.train.mixing import mixed_cross_entropy
from kapdist.train.pgd import pgd, random_start


class Part(NamedTuple):
    """A part of a rank's batch as the loss takes it."""

    images: Tensor  # (batch, 3, height, width), augmented and mixed
    labels: Tensor  # (batch,)
    share: float  # of each image's own label; the rest is its partner's
    ids: list[int]
    adversarial: Tensor | None = None  # what is trained on, besides or instead of the images

    def loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss of these logits (batch, classes), summed over images."""
        return mixed_cross_entropy(logits.float(), self.labels, self.share, label_smoothing)

    def with_gradient(self) -> Part:
        """Return the part with adversarial images whose gradient the next backward leaves in them."""
        assert self.adversarial is not None
        return self._replace(adversarial=self.adversarial.detach().requires_grad_())

    @property
    def heavier_labels(self) -> Tensor:
        """The label of each image that has the larger share."""
        return self.labels if self.share >= 0.5 else self.labels.flip(0)


class Adversary:
    """Makes the adversarial images of a run."""

    def __init__(self, config: Config, plan: Plan, settings: AdversarialPlan, engine: Engine, ranks: Ranks) -> None:
        self.config, self.plan, self.settings = config, plan, settings
        self.engine, self.ranks = engine, ranks
        self.counts = torch.zeros(4, dtype=torch.float64, device=ranks.device)

    def prepare(self, measure: bool) -> None:
        """Make the running statistics that the attack or a measurement reads those of rank 0, as all others do.

        Without it other ranks would attack with what their own images left, which no checkpoint has.
        """
        if measure or self.settings.reads_statistics:
            self.engine.sync_buffers()

    def start(self, part: Part, step: int) -> Part:
        """Return the part with the points that the attack starts from."""
        if not self.settings.random_start:
            return part._replace(adversarial=part.images)
        start = random_start(self.ball(step), part.images, self.config.seed, self.plan.epoch(step), part.ids)
        return part._replace(adversarial=start)

    def attack(self, part: Part, step: int, measure: bool) -> Part:
        """Return the part with its adversarial images, measured if asked to; free has them already."""
        if part.adversarial is None:
            part = self.climb(self.start(part, step), step)
        if measure:
            self.measure(part)
        return part

    def climb(self, part: Part, step: int) -> Part:
        """Return the part after the steps of projected gradient ascent from where it starts."""
        assert part.adversarial is not None

        def loss_of(images: Tensor) -> Tensor:
            return part.loss(self.engine.forward_alone(images), self.config.optim.label_smoothing)

        ball, settings = self.ball(step), self.settings
        with self.mode(step), frozen(self.engine.module):
            points = pgd(loss_of, ball, part.images, part.adversarial, settings.step_size(step), settings.steps)
        return part._replace(adversarial=points)

    def reuse(self, part: Part, step: int) -> Part:
        """Return the part one step up the gradient that the last update left (Shafahi 2019, algorithm 1)."""
        assert part.adversarial is not None
        assert part.adversarial.grad is not None
        points, gradient = part.adversarial.detach(), part.adversarial.grad
        points = self.ball(step).ascend(points, part.images, gradient, self.settings.step_size(step))
        return part._replace(adversarial=points)

    def ball(self, step: int) -> Ball:
        return Ball(self.settings.norm, self.settings.eps(step))

    @contextlib.contextmanager
    def mode(self, step: int) -> Iterator[None]:
        """Put the model into the mode in which it is attacked."""
        model, fixed = self.engine.module, self.settings.noise == "fixed"
        seed = derive_seed(self.config.seed, "noise under attack", step) if fixed else None
        mode = own_statistics if self.settings.statistics == "train" else evaluating
        with kap.noise(model, self.settings.noise, seed), mode(model):
            yield

    def measure(self, part: Part) -> None:
        """Count what the model makes of clean and adversarial images: in eval mode, its noise off.

        So the numbers are comparable between runs, and measuring draws nothing that a run's future depends on.
        """
        assert part.adversarial is not None
        model = self.engine.module
        with torch.no_grad(), kap.noise(model, "off"), evaluating(model):
            clean, adversarial = (
                self.engine.forward_alone(images.detach()).float() for images in (part.images, part.adversarial)
            )
        loss = part.loss(adversarial, self.config.optim.label_smoothing)
        hits = [(logits.argmax(1) == part.heavier_labels).sum() for logits in (clean, adversarial)]
        num_images = torch.tensor(len(part.labels), device=loss.device)
        self.counts += torch.stack([value.double() for value in (num_images, *hits, loss)])

    def describe(self, step: int) -> dict[str, float]:
        """Return what was measured in the last step, over all ranks, and begin anew; all call it together."""
        num_images, clean, adversarial, loss = self.ranks.sum(self.counts.clone()).tolist()
        self.counts.zero_()
        return {
            "eps": self.settings.eps(step - 1),
            "adversarial_loss": loss / num_images,
            "clean_accuracy": clean / num_images,
            "adversarial_accuracy": adversarial / num_images,
        }


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of a parameter: compiled code works out all that may be asked for, wanted or not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()


@contextlib.contextmanager
def own_statistics(model: nn.Module) -> Iterator[None]:
    """Let norms in training mode take the batch's statistics and leave their running ones, and the count, alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
