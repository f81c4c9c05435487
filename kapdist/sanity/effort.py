"""Does more effort, another attack or a larger ball break what the white-box attack left?

Everything here is about images that the model has right; an attack breaks an image when the prediction from the
mean probability over the draws of evaluation is wrong. Those draws are the same for all attacks, so that a flip is
the attack's doing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kapdist.attack.ball import Ball, black_to_white
from kapdist.config import SanityConfig
from kapdist.sanity.points import surface
from kapdist.sanity.probes import Ascent, fgsm, pgd, square
from kapdist.sanity.subject import Loss, Subject, margin, sharp_cross_entropy

EPS_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RANDOM_POINTS = 50
JUDGES = 2  # draws of evaluation, as a multiple of the attack's
TAIL = 0.75  # the last quarter of the iterations is looked at


class Effort:
    """Attacks on one model and what they left.

    Args:
        subject, images, labels: the images are those that the model has right.
        draws: of the model's randomness that an attack averages over; 1 for a deterministic model.
    """

    def __init__(
        self,
        subject: Subject,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        config: SanityConfig,
        seed: int,
        draws: int,
    ) -> None:
        self.subject, self.images, self.labels, self.ball = subject, images, labels, ball
        self.config, self.seed, self.draws = config, seed, draws
        self.broken: dict[str, Tensor] = {}
        self.largest_excess = 0.0

    def run(self, loss: Loss = sharp_cross_entropy, ball: Ball | None = None, **options: int) -> Ascent:
        """Run PGD with the config's effort unless `options` say otherwise."""
        effort: dict[str, Any] = {"iterations": self.config.iterations, "draws": self.draws, "seed": self.seed}
        watched = sorted({1, 2, 5, 10, 20, 50, 100, self.config.iterations})
        words: dict[str, Any] = {"loss": loss, "watched": watched} | effort | options
        return pgd(self.subject, self.images, self.labels, ball or self.ball, **words)

    def breaks(self, points: Tensor, ball: Ball | None = None) -> Tensor:
        """Return which images these adversarial ones break, (batch,)."""
        self.largest_excess = max(self.largest_excess, excess(points, self.images, ball or self.ball))
        return self.subject.scores(points, self.judges).argmax(1) != self.labels

    @property
    def judges(self) -> range:
        """The draws of evaluation, the same for all attacks."""
        return range(-JUDGES * self.draws, 0) if self.draws > 1 else range(1)

    @property
    def others(self) -> range:
        """As many draws that have chosen nothing: the hardest of many points is scored by them."""
        return range(-2 * JUDGES * self.draws, -JUDGES * self.draws) if self.draws > 1 else range(1)

    def breaks_again(self, points: Tensor) -> Tensor:
        """Return which images break under the draws that have chosen nothing, (batch,)."""
        return self.subject.scores(points, self.others).argmax(1) != self.labels

    def single_draws(self, points: Tensor, draws: range) -> Tensor:
        """Return the share of draws that are right on each point, (batch,), float64."""
        right = [self.subject.logits(points, draw).argmax(1) == self.labels for draw in draws]
        return torch.stack(right).double().mean(0)

    def part(self, rows: Tensor, subject: Subject | None = None) -> Effort:
        """Return the same on some of the images, or on another subject."""
        images, labels = self.images[rows], self.labels[rows]
        return Effort(subject or self.subject, images, labels, self.ball, self.config, self.seed, self.draws)

    def measure(self, tick: Callable[[], None]) -> tuple[dict[str, float | None], dict[str, object]]:
        """Return numbers and curves of all attacks; `tick` is called after each."""
        numbers: dict[str, float | None] = {}
        curves: dict[str, object] = {}
        self.main = self.run(iterations=2 * self.config.iterations)
        tick()
        numbers |= self.iterations(curves)
        tick()
        numbers |= self.restarts()
        tick()
        numbers |= self.other_attacks()
        tick()
        numbers |= self.sweep(curves)
        tick()
        numbers |= self.averages(curves)
        tick()
        return numbers | {"outside": self.largest_excess}, curves

    def iterations(self, curves: dict[str, object]) -> dict[str, float | None]:
        """Twice the iterations; and whether the margin still rose at the end."""
        steps = {count: self.breaks(points) for count, points in self.main.found.items()}
        self.broken["pgd"], self.broken["pgd, twice the iterations"] = (
            steps[self.config.iterations],
            steps[2 * self.config.iterations],
        )
        curves["iterations"] = {"x": list(steps), "y": [accuracy(found) for found in steps.values()]}
        only = gained(self.broken["pgd, twice the iterations"], self.broken["pgd"])
        return {"iterations": only, "converged": self.unfinished()}

    def unfinished(self) -> float | None:
        """Return the last quarter's share of the rise of the margin, over images that stand."""
        standing = ~self.broken["pgd, twice the iterations"]
        if not standing.any():
            return None
        margins = self.main.margins[:, standing].double().mean(1)
        rise = (margins[-1] - margins[0]).item()
        late = (margins[-1] - margins[int(TAIL * (len(margins) - 1))]).item()
        return late / rise if rise > 0 else 0.0

    def restarts(self) -> dict[str, float | None]:
        union = self.broken["pgd"].clone()
        for restart in range(1, self.config.restarts):
            union |= self.breaks(self.run(restart=restart).last)
        self.broken["pgd, restarts"] = union
        return {"restarts": gained(union, self.broken["pgd"])}

    def other_attacks(self) -> dict[str, float | None]:
        """Another loss; then what should be weaker: one step, random points, scores alone."""
        subject, images, labels = self.subject, self.images, self.labels
        entropy = self.broken["pgd"]
        self.broken["pgd on the margin"] = self.breaks(self.run(margin).last)
        self.broken["fgsm"] = self.breaks(fgsm(subject, images, labels, self.ball, self.draws))
        self.broken["random points"] = self.random_points()
        found = square(
            subject, images, labels, self.ball, queries=self.config.queries, seed=self.seed, draws=self.draws
        )
        self.broken["square"] = self.breaks(found)
        white = entropy | self.broken["pgd on the margin"]
        return {
            "margin loss": gained(self.broken["pgd on the margin"], self.broken["pgd, restarts"]),
            "one step": gained(self.broken["fgsm"], white),
            "random points": gained(self.broken["random points"], white),
            "square": gained(self.broken["square"], white | self.broken["pgd, restarts"]),
        }

    def random_points(self) -> Tensor:
        """Return which images the best of some random points at distance eps breaks; one draw chooses it."""
        best, highest = self.images, torch.full_like(self.images[:, 0, 0, 0], -torch.inf)
        for number in range(RANDOM_POINTS):
            points = surface(self.ball, self.images, self.seed, "random points", number)
            margins = margin(self.subject.scores(points, range(1)), self.labels)
            best = torch.where((margins > highest).view(-1, 1, 1, 1), points, best)
            highest = torch.maximum(highest, margins)
        return self.breaks(best)

    def sweep(self, curves: dict[str, object]) -> dict[str, float | None]:
        """Return whether robust accuracy falls with eps, and what is left when there is no bound."""
        largest = self.everything.eps
        sizes = [0.0, *(factor * self.ball.eps for factor in EPS_FACTORS if factor * self.ball.eps < largest)]
        left = [1.0]  # eps 0 leaves the images as they are, all of them right
        for eps in sizes[1:]:
            ball = self.ball.resized(eps)
            broken = self.broken["pgd"] if eps == self.ball.eps else self.breaks(self.run(ball=ball).last, ball)
            left.append(accuracy(broken))
        standing = 1 - self.unbounded().double().mean().item()
        rises = [after - before for before, after in itertools.pairwise(left)]
        curves["eps"] = {"x": sizes, "y": left, "unbounded": standing}
        return {"monotone": max(0.0, *rises) if rises else 0.0, "unbounded": standing}

    def unbounded(self) -> Tensor:
        """Return what falls when any image may be shown: both losses, in steps of a tenth of the range."""
        broken = torch.zeros_like(self.labels, dtype=torch.bool)
        for loss in (sharp_cross_entropy, margin):
            ascent = pgd(
                self.subject,
                self.images,
                self.labels,
                self.everything,
                iterations=2 * self.config.iterations,
                seed=self.seed,
                draws=self.draws,
                loss=loss,
                step=0.1,
            )
            broken |= self.breaks(ascent.last, self.everything)
        return broken

    def averages(self, curves: dict[str, object]) -> dict[str, float | None]:
        """Return what twice the draws break beyond the attack's own number; nothing for a deterministic model."""
        if self.draws == 1:
            return {"draws": None}
        counts = sorted({1, 5, self.draws, 2 * self.draws})
        left = {self.draws: self.broken["pgd"]}
        for count in counts:
            left[count] = self.breaks(self.run(draws=count).last) if count != self.draws else left[count]
        curves["draws"] = {"x": counts, "y": [accuracy(left[count]) for count in counts]}
        return {"draws": gained(left[2 * self.draws], left[self.draws])}

    @property
    def everything(self) -> Ball:
        """The ball that holds all images."""
        return self.ball.resized(black_to_white(self.ball.norm, self.images[0].numel()))

    @property
    def white_box(self) -> Tensor:
        """Which images any attack with gradients at the config's effort breaks."""
        return self.broken["pgd, restarts"] | self.broken["pgd on the margin"]


def gained(more: Tensor, than: Tensor) -> float:
    """Return the share of images that `more` breaks and `than` does not; one of them is forgiven as chance."""
    return max(0, int((more & ~than).sum()) - 1) / len(more)


def accuracy(broken: Tensor) -> float:
    return 1 - broken.double().mean().item()


def excess(points: Tensor, images: Tensor, ball: Ball) -> float:
    """Return by how much the worst image leaves the ball (up to float32 rounding) or [0, 1], relative to eps."""
    if not points.isfinite().all():
        return float("inf")
    largest = ball.distance(points, images).max() - ball.largest_distance(images[0].numel())
    beyond = torch.stack([largest, -points.min().double(), points.max().double() - 1])
    return max(0.0, beyond.max().item()) / max(ball.eps, 1e-30)
