"""The attack inside of a training step: from where, how far, against the model in which mode; and what it did.

What decides it is a function of (seed, epoch, image) or of (seed, step), or saved with the model: it has no state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.attack.ball import Ball
from kapdist.config import Config
from kapdist.engine import Engine, Ranks
from kapdist.plan.adversarial import GAUSSIAN_START_STD, AdversarialPlan
from kapdist.plan.training import Plan
from kapdist.rng import derive_seed
from kapdist.train import awp
from kapdist.train.mart import mart
from kapdist.train.mixing import mixed_cross_entropy
from kapdist.train.pgd import pgd, random_start
from kapdist.train.trades import divergence, trades

Logits = Callable[..., tuple[Tensor, ...]]
"""From batches of images to the logits of each."""


class Part(NamedTuple):
    """A part of a rank's batch as the loss takes it."""

    images: Tensor  # (batch, 3, height, width), augmented and mixed
    labels: Tensor  # (batch,)
    share: float | Tensor  # of each image's own label; the rest is its partner's
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
        if isinstance(self.share, Tensor):
            return self.labels.where(self.share[0] >= 0.5, self.labels.flip(0))
        return self.labels if self.share >= 0.5 else self.labels.flip(0)


class Adversary:
    """Makes the adversarial images of a run."""

    def __init__(self, config: Config, plan: Plan, settings: AdversarialPlan, engine: Engine, ranks: Ranks) -> None:
        self.config, self.plan, self.settings = config, plan, settings
        self.engine, self.ranks = engine, ranks
        self.counts = torch.zeros(5, dtype=torch.float64, device=ranks.device)

    def prepare(self, measure: bool) -> None:
        """Make the running statistics that the attack or a measurement reads those of rank 0, as all others do.

        Without it other ranks would attack with what their own images left, which no checkpoint has.
        """
        if measure or self.settings.reads_statistics:
            self.engine.sync_buffers()

    def grows(self, step: int) -> bool:
        """Whether the size of the perturbation is another than in later steps."""
        return step < self.settings.eps_warmup_steps

    def start(self, part: Part, step: int) -> Part:
        """Return the part with the points that the attack starts from."""
        settings, epoch = self.settings, self.plan.epoch(step)
        if settings.start == "image":
            return part._replace(adversarial=part.images)
        ball = Ball(settings.norm, settings.start_magnitude * settings.eps(step))
        std = GAUSSIAN_START_STD if settings.start == "gaussian" else None
        start = random_start(ball, part.images, self.config.seed, epoch, part.ids, std)
        return part._replace(adversarial=start)

    def attack(self, part: Part, step: int, measure: bool) -> Part:
        """Return the part with its adversarial images, measured if asked to; free has them already."""
        if part.adversarial is None:
            part = self.start(part, step)
        if self.settings.steps:
            part = self.climb(part, step)
        if measure:
            self.measure(part)
        return part

    def climb(self, part: Part, step: int) -> Part:
        """Return the part after the steps of projected gradient ascent from where it starts."""
        assert part.adversarial is not None
        ball, settings = self.ball(step), self.settings
        with self.mode(step), frozen(self.engine.module):
            points = pgd(
                self.climbed(part), ball, part.images, part.adversarial, settings.step_size(step), settings.steps
            )
        return part._replace(adversarial=points)

    def climbed(self, part: Part) -> Callable[[Tensor], Tensor]:
        """Return what the attack maximises, of images and summed over them: the loss, or trades' divergence."""
        if self.settings.mode != "trades":
            smoothing = self.config.optim.label_smoothing
            return lambda images: part.loss(self.engine.forward_alone(images), smoothing)
        with torch.no_grad():
            clean = self.engine.forward_alone(part.images).float()
        return lambda images: divergence(clean, self.engine.forward_alone(images).float()).sum()

    def loss(self, part: Part, logits_of: Logits) -> Tensor:
        """Return the summed loss of a part: of its adversarial images, alone or beside the clean ones."""
        assert part.adversarial is not None
        settings, smoothing = self.settings, self.config.optim.label_smoothing
        if settings.compares:  # each by itself through the norms, as published
            clean, adversarial = (logits.float() for logits in logits_of(part.images, part.adversarial))
            if settings.mode == "trades":
                return trades(part.loss(clean, smoothing), clean, adversarial, settings.beta)
            return mart(part.loss(adversarial, smoothing), clean, adversarial, part.labels, settings.beta)
        if not settings.clean_share:
            return part.loss(logits_of(part.adversarial)[0], smoothing)
        clean, adversarial = logits_of(torch.cat([part.images, part.adversarial]))[0].chunk(2)
        share = settings.clean_share
        return share * part.loss(clean, smoothing) + (1 - share) * part.loss(adversarial, smoothing)

    @contextlib.contextmanager
    def worst_weights(self, parts: Iterable[Part], step: int) -> Iterator[Iterable[Part]]:
        """Give the parts of a step back, and move the weights up their loss inside of the block if they are to be.

        One direction of the whole batch, over its parts and all ranks; so the parts are held together.
        """
        if not self.settings.perturbs_weights(step):
            yield parts
            return
        parts, engine = list(parts), self.engine
        weights = awp.perturbed_weights(engine.module)
        alone: Logits = lambda *batches: tuple(map(engine.forward_alone, batches))  # noqa: E731
        losses = (partial(self.scaled_loss, part, alone) for part in parts)
        with own_statistics(engine.module):
            found = awp.gradients(losses, weights, self.ranks)
        gamma = self.settings.awp_gamma
        steps = [awp.worst_step(*pair, gamma) for pair in zip(weights, found, strict=True)]
        with awp.moved(weights, steps):
            yield parts

    def scaled_loss(self, part: Part, logits_of: Logits) -> Tensor:
        """Return a loss whose gradients fp16 can hold: only their direction will be looked at."""
        return self.engine.scaled(1 / len(self.plan.batch(0)) * self.loss(part, logits_of))

    def reuse(self, part: Part, step: int) -> Part:
        """Return the part one step up the gradient that the last update left (Shafahi 2019, algorithm 1)."""
        assert part.adversarial is not None
        assert part.adversarial.grad is not None
        points, gradient = part.adversarial.detach(), part.adversarial.grad
        points = self.ball(step).ascend(points, part.images, gradient, self.settings.step_size(step))
        return part._replace(adversarial=points)

    def ball(self, step: int) -> Ball:
        """Return what the steps of the attack end in."""
        return Ball(self.settings.norm, self.settings.eps(step) if self.settings.projects else math.inf)

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
        num_images = loss.new_full((), len(part.labels))
        moved = divergence(clean, adversarial).sum()
        self.counts += torch.stack([value.double() for value in (num_images, *hits, loss, moved)])

    def describe(self, step: int) -> dict[str, float]:
        """Return what was measured in the last step, over all ranks, and begin anew; all call it together."""
        num_images, clean, adversarial, loss, moved = self.ranks.sum(self.counts.clone()).tolist()
        self.counts.zero_()
        return {
            "eps": self.settings.eps(step - 1),
            "adversarial_loss": loss / num_images,
            "clean_accuracy": clean / num_images,
            "adversarial_accuracy": adversarial / num_images,
            "divergence": moved / num_images,
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
