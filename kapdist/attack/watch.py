"""The model as the library is handed it: whatever it tries is looked at, and nothing is computed that is known.

The library's APGD and FAB go on for all their iterations with images that they have broken already. On a
deterministic model the first image inside the ball that is misclassified, by more than rounding, decides the
verdict; from then on the image's row is left out of the batch that the network computes, and the library sees the
logits that it saw last. Rows do not look at each other in these attacks, and the library's batch keeps its shape
and so its random starts: the verdicts of the others are those without the leaving out. What is asked twice is
answered from memory (runs.py).

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
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.known import places_of
from kapdist.attack.own.bpda import Straight
from kapdist.attack.runs import AllBrokenError, Later, Queries, Run
from kapdist.records.attack_plan import Norm

SURELY = 1e-4  # of the largest logit: no batch size rounds a misclassification of this margin away


def turned(logits: Tensor, prediction: Tensor) -> Tensor:
    """Tell which rows of logits, (B, classes), say another class than `prediction`, (B,), by more than rounding."""
    said = logits.gather(1, prediction[:, None]).squeeze(1)
    rounding = max(SURELY, 16 * torch.finfo(logits.dtype).eps) if logits.is_floating_point() else SURELY
    return logits.amax(1) - said > rounding * logits.abs().amax(1)


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
    clean: Tensor | None
    """(B, classes): logits of the images; None where they are to be asked for."""
    border: Border | None = None
    """Where FAB found it, to be written; None where nobody asks."""


@dataclass
class Border:
    """The misclassified points, at any distance, that FAB found nearest to each of B images."""

    points: Tensor
    distances: Tensor
    """(B, targets), float64: of the nearest one found on the way to each target; infinity where there was none."""

    def among(self, rows: Tensor, images: Tensor) -> Border:
        """Return it for more images, of which `rows` are these."""
        distances = self.distances.new_full((len(images), self.distances.shape[1]), torch.inf)
        return Border(images.index_copy(0, rows, self.points), distances.index_copy(0, rows, self.distances))

    def note(self, rows: Tensor, points: Tensor, distances: Tensor, target: int) -> None:
        nearest = distances < self.distances[rows].amin(1)
        self.points[rows[nearest]] = points[nearest]
        self.distances[rows, target] = distances.minimum(self.distances[rows, target])


class WatchedModel(nn.Module):
    """Between the library and the model; counts the passes that the library asks for.

    Args:
        model: images to logits, counted or averaged.
        norm: of the ball.
        compact: compute nothing that is known; for deterministic models.
        remember: remember the hardest points; for noisy models.
        passes_each: passes of the network that one pass of `model` is, its draws.
        rough: the runs of the library's attacks pass in the model's lower precision, and what is wrong there,
            within the ball, is passed exactly before the library sees it.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm,
        compact: bool = False,
        remember: bool = False,
        passes_each: int = 1,
        rough: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.norm, self.passes_each = model, norm, passes_each
        self.compact, self.remember, self.rough = compact, remember, rough
        self.asked_forwards = self.asked_backwards = 0
        self.batch: Batch | None = None
        self.run: Run | Queries | None = None

    def forward(self, images: Tensor) -> Tensor:
        run = self.run
        if run is None or not run.expects(images):
            logits = self.outside(images)
        elif isinstance(run, Queries):
            logits = run.answer(self.network, images)
        else:
            self.settle(run)
            logits = run.answer(self.network, images)
            self.look_at(run, logits.detach())
        self.asked_forwards += len(images) * self.passes_each
        if logits.requires_grad:
            logits.register_hook(self.count_backward)
        return logits

    def count_backward(self, gradient: Tensor) -> None:
        self.asked_backwards += len(gradient) * self.passes_each

    def outside(self, images: Tensor) -> Tensor:
        """Answer between runs, where the library mostly asks for images as they were given."""
        batch = self.batch
        if batch is None or batch.clean is None or images.requires_grad:
            logits: Tensor = self.model(images)
            return logits
        places = places_of(images, batch.images)
        rest = (places < 0).nonzero().squeeze(1)
        logits = batch.clean[places]
        return logits.index_copy(0, rest, self.model(images[rest])) if len(rest) else logits

    def network(self, images: Tensor, rows: Tensor) -> Tensor:
        """Pass some rows of the batch; what decides a verdict is never rough."""
        if not self.rough:
            logits: Tensor = self.model(images)
            return logits
        batch = self.batch
        assert batch is not None
        rough: Tensor = self.model(images, rough=True)
        said = rough.detach()
        own = said.gather(1, batch.labels[rows, None]).squeeze(1)
        points = images.detach()
        inside = Ball(self.norm, batch.eps).inside(points, batch.images[rows])
        doubtful = ((said.amax(1) > own) & inside).nonzero().squeeze(1)
        if not len(doubtful):
            return rough
        with torch.no_grad():
            exact = self.model(points[doubtful])
        confirmed: Tensor = Straight.apply(said.index_copy(0, doubtful, exact), rough)
        return confirmed

    def look_at(self, run: Run, logits: Tensor) -> None:
        """Note which images have fallen, and the hardest point of each."""
        assert self.batch is not None
        labels = self.batch.labels[run.rows][:, None]
        own = logits.gather(1, labels).squeeze(1)
        margin = own - logits.scatter(1, labels, -torch.inf).amax(1)
        if self.remember:
            self.remember_hardest(run, run.points, margin)
        if not self.compact:  # nothing is left out, and no border noted
            return
        wrong = run.live & (margin < -SURELY * logits.abs().amax(1))
        if run.target is not None and self.batch.border is not None:
            self.note_border(run, wrong, run.target)
        if run.may_drop:
            run.fallen = Later(wrong)

    def note_border(self, run: Run, wrong: Tensor, target: int) -> None:
        assert self.batch is not None
        assert self.batch.border is not None
        which = wrong.nonzero().squeeze(1)
        points, rows = run.points[which], run.rows[which]
        distances = Ball(self.norm, torch.inf).distance(points, self.batch.images[rows])
        self.batch.border.note(rows, points, distances, target)

    def settle(self, run: Run) -> None:
        """Leave out what was seen to have fallen; a GPU has come so far by now and is not waited for."""
        fallen, run.fallen = run.fallen, None
        if fallen is None or not fallen.any():
            return
        batch, which = self.batch, fallen.which.nonzero().squeeze(1)
        assert batch is not None
        rows, points = run.rows[which], run.points[which]
        sure = Ball(self.norm, batch.eps).inside(points, batch.images[rows])
        batch.broken[rows[sure]] = True
        batch.found[rows[sure]] = points[sure]
        run.leave_out(which[sure])

    def remember_hardest(self, run: Run, images: Tensor, margin: Tensor) -> None:
        batch = self.batch
        assert batch is not None
        harder = (margin < batch.margins[run.rows]).nonzero().squeeze(1)
        rows = run.rows[harder]
        fits = Ball(self.norm, batch.eps).inside(images[harder], batch.images[rows])
        batch.hardest[rows[fits]] = images[harder[fits]]
        batch.margins[rows[fits]] = margin[harder[fits]].float()

    @contextlib.contextmanager
    def given(
        self,
        images: Tensor,
        labels: Tensor,
        eps: float,
        broken: Tensor,
        found: Tensor,
        clean: Tensor | None,
        border: Border | None,
    ) -> Iterator[Batch]:
        """Say what the attack in this block is given; `broken` are the rows that had fallen before."""
        margins = torch.full((len(images),), torch.inf, dtype=torch.float32, device=images.device)
        clean = clean if self.compact else None
        points = broken.clone(), found.clone(), images.clone()
        self.batch = Batch(images, labels, eps, *points, margins, clean, border)
        try:
            yield self.batch
        finally:
            self.batch = None

    @contextlib.contextmanager
    def running(
        self, attack: APGDAttack | FABAttack_PT, images: Tensor, labels: Tensor, num_classes: int
    ) -> Iterator[Run]:
        batch = self.batch
        assert batch is not None
        rows = self.rows_of(images, labels)
        is_apgd = isinstance(attack, APGDAttack)
        # FAB looks for the images that are right at first, and so must see all of them as they are.
        live = ~batch.broken[rows] if self.compact and is_apgd else torch.ones_like(rows, dtype=torch.bool)
        # With L1, APGD starts out beyond eps, where nothing that falls would count.
        run = Run(
            rows,
            batch.labels[rows],
            live,
            may_drop=self.compact and attack.eps <= batch.eps,
            remembers=self.compact,
            asked=(self.asked_forwards, self.asked_backwards),
            num_forwards=passes_of_a_run(attack, num_classes)[0],
            target=attack.target_class - 2 if not is_apgd and attack.targeted else None,
            looks_ahead=not is_apgd and bool(attack.targeted),
        )
        if batch.clean is not None and not is_apgd:
            run.note(images.detach(), batch.clean[rows])
        self.run = run
        try:
            yield run
        finally:
            self.settle(run)
            self.run = None

    @contextlib.contextmanager
    def querying(self, images: Tensor, labels: Tensor) -> Iterator[None]:
        """Watch a run of Square."""
        self.run = Queries(self.rows_of(images, labels), labels)
        try:
            yield
        finally:
            self.run = None

    def rows_of(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return which rows of the batch these are: some of them, bit by bit, in order."""
        batch = self.batch
        assert batch is not None
        rows = places_of(images, batch.images, labels[:, None] == batch.labels[None])
        assert bool((rows >= 0).all()), "the library was given other images"
        return rows

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


def watch(attack: APGDAttack | FABAttack_PT | SquareAttack, model: WatchedModel, num_classes: int) -> None:
    """Let every attack_single_run of an attack of the library run under the eyes of `model`."""
    run = attack.attack_single_run
    if isinstance(attack, SquareAttack):
        attack.attack_single_run = functools.partial(queried_run, model, run)
    else:
        attack.attack_single_run = functools.partial(watched_run, attack, model, num_classes, run)


def queried_run(model: WatchedModel, stock: Callable[..., Any], x: Tensor, y: Tensor) -> Any:
    with model.querying(x, y):
        return stock(x, y)


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
    with model.running(attack, x, y, num_classes) as run:
        result: Any = None
        with contextlib.suppress(AllBrokenError):
            result = stock(x, y, *words, **options)
    assert model.batch is not None
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
