"""Stronger attacks, each for a cause that misleads others: of the images that stand they say which they break."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.own.hard_label import RayS
from kapdist.errors import first_line
from kapdist.sanity.effort import Effort
from kapdist.sanity.points import interior
from kapdist.sanity.probes import pgd, square
from kapdist.sanity.signal import NEAR
from kapdist.sanity.straight import StraightThrough, cuts, trace
from kapdist.sanity.subject import Loss, Subject, margin, sharp_cross_entropy

LOSSES = margin, sharp_cross_entropy
MOST_MEMBERS = 8
ROUNDING = 1e-5  # of the largest logit: two passes of one member on a GPU


class SkippedError(Exception):
    """Why an attack cannot be run on this model."""


@dataclass
class Case:
    """The images that stand, the model, and what is known of it.

    Args:
        effort: its images are those that stand; its subject answers whether one is broken.
        surrogates: models whose adversarial images are tried.
        first: the model as it was before anything was asked of it; None where it cannot be copied.
    """

    effort: Effort
    surrogates: Sequence[nn.Module] = ()
    first: nn.Module | None = None
    how: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broken = torch.zeros_like(self.effort.labels, dtype=torch.bool)
        self.worst = self.effort.images.clone()
        """Of a random model, the points on which the fewest single draws are right."""
        self.right = torch.full(self.broken.shape, torch.inf, dtype=torch.float64, device=self.broken.device)

    @property
    def subject(self) -> Subject:
        return self.effort.subject

    @property
    def standing(self) -> Tensor:
        """The numbers of the images that nothing has broken here, (count,)."""
        return (~self.broken).nonzero().squeeze(1)

    def judge(self, points: Tensor, rows: Tensor) -> int:
        """Note which of these rows' points break their image; return how many."""
        effort = self.effort.part(rows)
        fallen = effort.breaks(points) & effort.ball.inside(points, effort.images)
        if effort.draws > 1:
            fallen &= effort.breaks_again(points)
            right = effort.single_draws(points, effort.judges)
            harder = right < self.right[rows]
            self.worst[rows[harder]], self.right[rows[harder]] = points[harder], right[harder]
        self.broken[rows[fallen]] = True
        return int(fallen.sum())

    def climb(
        self,
        subject: Subject | None = None,
        *,
        draws: int | None = None,
        restarts: int = len(LOSSES),
        dtype: torch.dtype = torch.float32,
    ) -> int:
        """Run PGD with the remedies' iterations on a subject, by turns of its losses; return how many it broke."""
        broken = 0
        for restart in range(restarts):
            if not len(rows := self.standing):
                break
            effort = self.effort.part(rows)
            found = pgd(
                subject or self.subject,
                effort.images.to(dtype),
                effort.labels,
                effort.ball,
                iterations=effort.config.remedies.iterations,
                seed=effort.seed,
                draws=draws or effort.draws,
                loss=LOSSES[restart % len(LOSSES)],
                restart=restart,
            ).last
            broken += self.judge(effort.ball.project(found.float(), effort.images), rows)
        return broken


def averaged_gradients(case: Case) -> None:
    """More draws for each gradient (EoT): Athalye et al. 2018, https://arxiv.org/abs/1707.07397."""
    if case.effort.draws == 1:
        raise SkippedError("the model draws no random numbers")
    case.climb(draws=case.effort.config.remedies.draws)


def members_in_turn(case: Case) -> None:
    """Members of a randomised ensemble, one after the other from where the last one's attack ended.

    Dbouk & Shanbhag 2022, https://arxiv.org/abs/2206.06737: gradients of members that point away from each other
    add up to nothing, so an average misleads. A step to another member's adversarial image is kept where more
    draws are wrong there.
    """
    members = members_of(case)
    for start in range(min(len(members), case.effort.config.remedies.restarts)):
        if len(rows := case.standing):
            one_round(case, rows, members[start:] + members[:start])


def one_round(case: Case, rows: Tensor, members: list[int]) -> None:
    """Attack the members in this order, and judge every image on the way."""
    effort = case.effort.part(rows)
    best, right = effort.images, effort.single_draws(effort.images, effort.judges)
    for member in members:
        found = pgd(
            case.subject,
            effort.images,
            effort.labels,
            effort.ball,
            iterations=effort.config.remedies.iterations,
            seed=effort.seed,
            loss=margin,
            start=best,
            numbers=(member,),
        ).last
        case.judge(found, rows)
        now = effort.single_draws(found, effort.judges)
        best = torch.where((now < right).view(-1, 1, 1, 1), found, best)
        right = torch.minimum(now, right)


def members_of(case: Case) -> list[int]:
    """Return a draw of each network that the draws choose among, at most MOST_MEMBERS of them."""
    if case.effort.draws == 1:
        raise SkippedError("the model draws no random numbers")
    numbers = case.subject.fresh(case.effort.config.remedies.draws)
    found: dict[int, Tensor] = {}
    for number in numbers:
        logits = case.subject.logits(case.effort.images, number)
        rounding = ROUNDING * logits.abs().max()
        if not any((logits - other).abs().max() <= rounding for other in found.values()):
            found[number] = logits
    if len(found) == len(numbers):
        raise SkippedError(f"none of {len(numbers)} draws is like another: the model is not one of a few members")
    case.how.append(f"{len(found)} members")
    return list(found)[:MOST_MEMBERS]


class Blurred(Subject):
    """A model of which every draw is asked for its gradient at another random point near by."""

    def __init__(self, subject: Subject, near: Ball) -> None:
        super().__init__(subject.model, subject.mode, subject.seed, subject.batch_size)
        self.near = near

    def derivative(self, points: Tensor, labels: Tensor, loss: Loss, draw: int) -> tuple[Tensor, Tensor]:
        return super().derivative(interior(self.near, points, self.seed, "near by", draw), labels, loss, draw)


def gradients_near_by(case: Case) -> None:
    """The gradient averaged over random points within eps/8, where it changes from point to point.

    What is fine grained cancels, as by the averages of Athalye et al. 2018, https://arxiv.org/abs/1802.00420,
    section 4.2.
    """
    ball = case.effort.ball
    blurred = Blurred(case.subject, ball.resized(NEAR * ball.eps))
    case.climb(blurred, draws=case.effort.config.remedies.draws)


def straight_through(case: Case) -> None:
    """Past what hides the gradient: kapdist/sanity/straight.py finds it."""
    images = case.effort.images[: case.subject.batch_size]
    logits = case.subject.logits(images)
    try:
        with case.subject.drawn(0):
            seen = trace(case.subject.model, images, logits.shape)
    except Exception as error:  # whatever a model of somebody else does when its modules are looked at
        raise SkippedError(f"the model does not run when its modules are looked at ({first_line(error)})") from None
    options = cuts(seen, logits)
    if not options:
        raise SkippedError("no layer is without a derivative, and no inner module has the image or the logits")
    for cut in options:
        broken = case.climb(case.subject.like(StraightThrough(case.subject.model, cut)))
        if broken:
            case.how.append(f"{cut}: {broken}")


def double_precision(case: Case) -> None:
    """Where float32 rounds a gradient away."""
    double = case.subject.as_float64(case.effort.images)
    if double is None:
        raise SkippedError("the model does not compute in double precision")
    case.climb(double, dtype=torch.float64)


def more_starts(case: Case) -> None:
    """More iterations from more random starts, half of them on the margin: Mosbach et al. 2018."""
    case.climb(restarts=case.effort.config.remedies.restarts)


def scores_alone(case: Case) -> None:
    """Square with more queries: no gradient is asked for."""
    effort, queries = case.effort, case.effort.config.remedies.queries
    words = {"queries": queries, "seed": effort.seed, "draws": effort.draws}
    found = square(case.subject, effort.images, effort.labels, effort.ball, **words)
    case.judge(found, case.standing)


class Predictions(nn.Module):
    """A model as one that is asked for classes sees it; of a random one the average over some draws, held fixed."""

    def __init__(self, subject: Subject, draws: int) -> None:
        super().__init__()
        self.subject, self.draws = subject, range(1, draws + 1) if draws > 1 else range(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.subject.scores(images, self.draws)


def classes_alone(case: Case) -> None:
    """RayS: Chen & Gu 2020, https://arxiv.org/abs/2006.12792; neither gradients nor scores are asked for."""
    effort = case.effort
    attack = RayS(Predictions(case.subject, effort.draws), effort.ball, effort.config.remedies.queries)
    found = effort.ball.project(attack.perturb(effort.images, effort.labels), effort.images)
    case.judge(found, case.standing)


def transfer(case: Case) -> None:
    """Adversarial images of other models: Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section 4."""
    if not case.surrogates:
        raise SkippedError("no surrogate is named (sanity.surrogate=RUN)")
    for model in case.surrogates:
        case.climb(Subject(model, "off", case.subject.seed, case.subject.batch_size), draws=1)


def one_at_a_time(case: Case) -> None:
    """Each image attacked and judged alone, as no other image of a batch is the attacker's."""
    on_another(case, case.subject.like(case.subject.model, batch_size=1))


class FirstCall(nn.Module):
    """A model that remembers, as it was before its first call, at every call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = copy.deepcopy(self.model)(images)
        return logits


def first_call(case: Case) -> None:
    """The model put back before each call, for the attack and for its verdict."""
    if case.first is None:
        raise SkippedError("the model cannot be copied")
    on_another(case, case.subject.like(FirstCall(case.first)))


def on_another(case: Case, subject: Subject) -> None:
    """Attack another subject than the case's; what it has wrong without an attack is nobody's doing."""
    other = Case(case.effort.part(case.standing, subject))
    before = other.effort.breaks(other.effort.images)
    other.climb()
    case.broken |= other.broken & ~before
