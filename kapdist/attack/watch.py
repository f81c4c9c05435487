"""The model as the library is handed it: whatever it tries is looked at, and what has fallen is not computed again.

The library's APGD and FAB go on for all their iterations with images that they have broken already. On a
deterministic model the first image inside the ball that is misclassified, by more than rounding, decides the
verdict; from then on the image's row is left out of the batch that the network computes, and the library sees the
logits that it saw last. Rows do not look at each other in these attacks, and the library's batch keeps its shape
and so its random starts: the verdicts of the others are those without the leaving out.

With a noisy model nothing is left out, as the next draw may differ; there the hardest point that was seen of each
image is remembered, to be scored afresh.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.records.attack_plan import Norm

SURELY = 1e-4  # of the largest logit: no batch size rounds a misclassification of this margin away


def turned(logits: Tensor, prediction: Tensor) -> Tensor:
    """Tell which rows of logits, (B, classes), say another class than `prediction`, (B,), by more than rounding."""
    said = logits.gather(1, prediction[:, None]).squeeze(1)
    rounding = max(SURELY, 16 * torch.finfo(logits.dtype).eps) if logits.is_floating_point() else SURELY
    return logits.amax(1) - said > rounding * logits.abs().amax(1)


class AllBrokenError(Exception):
    """Every image of a run has fallen; nothing is left to compute."""


@dataclass
class Batch:
    """The images that one attack is given, (B, ...), and what is known of them."""

    images: Tensor
    labels: Tensor
    eps: float
    broken: Tensor
    """(B,) bool: fallen, here or before."""
    found: Tensor
    """Like images: what broke them, else the clean ones."""
    hardest: Tensor
    """Like images: the point inside the ball where the model came closest to being wrong, if asked for."""
    margins: Tensor
    """(B,) there: logit of the label less the largest other one; infinity where nothing was seen."""


@dataclass
class Run:
    """One call of attack_single_run: the rows of the batch that it works on, in order."""

    rows: Tensor
    live: Tensor
    """(rows,) bool: still computed."""
    logits: Tensor | None
    """What the rows that are not live last saw."""
    may_drop: bool
    asked: tuple[int, int]
    """Passes that the library had asked for when the run began."""


class WatchedModel(nn.Module):
    """Between the library and the model; counts the passes that the library asks for.

    Args:
        model: images to logits, counted or averaged.
        norm: of the ball.
        compact: leave rows out once they have fallen; for deterministic models.
        remember: remember the hardest points; for noisy models.
        passes_each: passes of the network that one pass of `model` is, its draws.
    """

    def __init__(
        self, model: nn.Module, norm: Norm, compact: bool = False, remember: bool = False, passes_each: int = 1
    ) -> None:
        super().__init__()
        self.model, self.norm, self.passes_each = model, norm, passes_each
        self.compact, self.remember = compact, remember
        self.asked_forwards = self.asked_backwards = 0
        self.batch: Batch | None = None
        self.run: Run | None = None

    def forward(self, images: Tensor) -> Tensor:
        run = self.run
        if run is None or len(images) != len(run.rows):
            logits: Tensor = self.model(images)
        else:
            logits = self.compute_live(run, images)
            self.look_at(run, images.detach(), logits.detach())
        self.asked_forwards += len(images) * self.passes_each
        if logits.requires_grad:
            logits.register_hook(self.count_backward)
        return logits

    def count_backward(self, gradient: Tensor) -> None:
        self.asked_backwards += len(gradient) * self.passes_each

    def compute_live(self, run: Run, images: Tensor) -> Tensor:
        if bool(run.live.all()):
            logits: Tensor = self.model(images)
            return logits
        rows = run.live.nonzero().squeeze(1)
        if not len(rows):
            raise AllBrokenError
        computed = self.model(images[rows])
        if run.logits is None:  # rows that had fallen before: any wrong answer will do
            run.logits = self.wrong_answers(run, computed.shape[1]).to(computed.dtype)
        return run.logits.index_copy(0, rows, computed)

    def wrong_answers(self, run: Run, num_classes: int) -> Tensor:
        assert self.batch is not None
        wrong = (self.batch.labels[run.rows] + 1) % num_classes
        return nn.functional.one_hot(wrong, num_classes)

    def look_at(self, run: Run, images: Tensor, logits: Tensor) -> None:
        """Note which images have fallen, and the hardest point of each."""
        assert self.batch is not None
        labels = self.batch.labels[run.rows][:, None]
        own = logits.gather(1, labels).squeeze(1)
        margin = own - logits.scatter(1, labels, -torch.inf).amax(1)
        if self.remember:
            self.remember_hardest(run, images, margin)
        if run.may_drop:
            fallen = run.live & (margin < -SURELY * logits.abs().amax(1))
            if bool(fallen.any()):
                self.drop(run, fallen.nonzero().squeeze(1), images, logits)

    def drop(self, run: Run, fallen: Tensor, images: Tensor, logits: Tensor) -> None:
        batch = self.batch
        assert batch is not None
        rows = run.rows[fallen]
        sure = Ball(self.norm, batch.eps).inside(images[fallen], batch.images[rows])
        batch.broken[rows[sure]] = True
        batch.found[rows[sure]] = images[fallen[sure]]
        run.live[fallen[sure]] = False
        run.logits = logits.clone()

    def remember_hardest(self, run: Run, images: Tensor, margin: Tensor) -> None:
        batch = self.batch
        assert batch is not None
        harder = (margin < batch.margins[run.rows]).nonzero().squeeze(1)
        rows = run.rows[harder]
        fits = Ball(self.norm, batch.eps).inside(images[harder], batch.images[rows])
        batch.hardest[rows[fits]] = images[harder[fits]]
        batch.margins[rows[fits]] = margin[harder[fits]].float()

    @contextlib.contextmanager
    def given(self, images: Tensor, labels: Tensor, eps: float, broken: Tensor, found: Tensor) -> Iterator[Batch]:
        """Say what the attack in this block is given; `broken` are the rows that had fallen before."""
        margins = torch.full((len(images),), torch.inf, dtype=torch.float32, device=images.device)
        self.batch = Batch(images, labels, eps, broken.clone(), found.clone(), images.clone(), margins)
        try:
            yield self.batch
        finally:
            self.batch = None

    @contextlib.contextmanager
    def running(self, attack: APGDAttack | FABAttack_PT, images: Tensor, labels: Tensor) -> Iterator[Run]:
        batch = self.batch
        assert batch is not None
        rows = rows_of(images, labels, batch)
        is_apgd = isinstance(attack, APGDAttack)
        # FAB looks for the images that are right at first, and so must see all of them as they are.
        live = ~batch.broken[rows] if self.compact and is_apgd else torch.ones_like(rows, dtype=torch.bool)
        # With L1, APGD starts out beyond eps, where nothing that falls would count.
        may_drop = self.compact and attack.eps <= batch.eps
        self.run = Run(rows, live, None, may_drop, (self.asked_forwards, self.asked_backwards))
        try:
            yield self.run
        finally:
            self.run = None

    def count_the_rest(self, run: Run, attack: APGDAttack | FABAttack_PT, num_classes: int) -> None:
        """Add what the library would have asked for, had its run gone on to the end."""
        forwards, backwards = passes_of_a_run(attack, num_classes)
        each = len(run.rows) * self.passes_each
        self.asked_forwards = run.asked[0] + forwards * each
        self.asked_backwards = run.asked[1] + backwards * each


def passes_of_a_run(attack: APGDAttack | FABAttack_PT, num_classes: int) -> tuple[int, int]:
    """Return the forward and backward passes of one image in one attack_single_run."""
    if isinstance(attack, APGDAttack):
        steps = (attack.n_iter + 1) * attack.eot_iter
        return steps, steps
    targeted = bool(attack.targeted)
    return 1 + targeted + 2 * attack.n_iter, attack.n_iter * (1 if targeted else num_classes)


def rows_of(images: Tensor, labels: Tensor, batch: Batch) -> Tensor:
    """Return which rows of the batch these are: some of them, bit by bit, in order."""
    rows, row = [], 0
    for image, label in zip(images, labels, strict=True):
        while label != batch.labels[row] or not torch.equal(image, batch.images[row]):
            row += 1
        rows.append(row)
        row += 1
    return torch.tensor(rows, device=images.device)


def watch(attack: APGDAttack | FABAttack_PT, model: WatchedModel, num_classes: int) -> None:
    """Let every attack_single_run of an attack of the library run under the eyes of `model`."""
    attack.attack_single_run = functools.partial(watched_run, attack, model, num_classes, attack.attack_single_run)


def watched_run(
    attack: APGDAttack | FABAttack_PT,
    model: WatchedModel,
    num_classes: int,
    stock: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *words: Any,
    **options: Any,
) -> Any:
    """Do what the stock attack_single_run does; hand back, for what has fallen, the image that broke it."""
    with model.running(attack, x, y) as run:
        assert model.batch is not None
        result: Any = None
        with contextlib.suppress(AllBrokenError):
            result = stock(x, y, *words, **options)
        if result is None:
            model.count_the_rest(run, attack, num_classes)
            result = nothing_left(attack, model.batch.found[run.rows], y)
        hand_back(result, run, model.batch)
        return result


def nothing_left(attack: APGDAttack | FABAttack_PT, found: Tensor, labels: Tensor) -> Any:
    """Return what a run returns that has broken all: for APGD (best point, still right, loss, adversarial)."""
    if not isinstance(attack, APGDAttack):
        return found.clone()
    zeros = torch.zeros(len(found), dtype=found.dtype, device=found.device)
    return found.clone(), torch.zeros_like(labels, dtype=torch.bool), zeros, found.clone()


def hand_back(result: Any, run: Run, batch: Batch) -> None:
    fallen = (~run.live).nonzero().squeeze(1)
    found = batch.found[run.rows[fallen]]
    if isinstance(result, tuple):
        result[1][fallen] = False
        result[3][fallen] = found
    else:
        result[fallen] = found
