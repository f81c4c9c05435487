"""One call of attack_single_run: what it asks of the network, and what of it the network need not be asked.

The same verdicts, image by image: a deterministic network says of a point what it said of it before. Sizes of a
batch may round last bits; nothing else differs from a run of the library that is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kapdist.attack.known import Told, equal_rows

Network = Callable[[Tensor, Tensor], Tensor]
"""(images, rows of the batch that they are points of) to logits."""


class AllBrokenError(Exception):
    """Every image of a run has fallen; nothing is left to compute."""


class Later:
    """Whether any of (rows,) bool is true: asked of a GPU now, answered when it has come so far."""

    def __init__(self, which: Tensor) -> None:
        self.which, self.flag, self.done = which, which.any().to("cpu", non_blocking=True), None
        if which.is_cuda:
            self.done = torch.cuda.Event()
            self.done.record()

    def any(self) -> bool:
        if self.done is not None:
            self.done.synchronize()
        return bool(self.flag)


@dataclass
class Run:
    """A run of APGD or FAB on some rows of the batch, in order."""

    rows: Tensor
    labels: Tensor
    live: Tensor
    """(rows,) bool: still computed."""
    may_drop: bool
    remembers: bool
    """What was asked is not computed again."""
    asked: tuple[int, int]
    """Passes that the library had asked for when the run began."""
    num_forwards: int
    """Of the whole run."""
    target: int | None
    """Of FAB's, from 0."""
    looks_ahead: bool
    """FAB with a target: points are asked about first, and then for their gradient along one direction."""
    done: int = 0
    """Forward passes so far."""
    all_live: bool = False
    """Known without asking a GPU."""
    fallen: Later | None = None
    """Of the last pass."""
    direction: Tensor | None = None
    """(rows, classes): what every gradient of the run is taken along."""

    def __post_init__(self) -> None:
        self.all_live = bool(self.live.all())
        self.points = self.logits = self.gradient = torch.empty(0)
        """Of the last pass, for every row; of those that are left out, the logits that they saw last."""
        self.has_gradient = torch.zeros_like(self.live)
        self.crossed = self.crossed_last = torch.ones_like(self.live)
        """Was across the border in one of the last two points, and will be again, as FAB's are; in the last."""

    def expects(self, images: Tensor) -> bool:
        return len(images) == len(self.rows)

    def leave_out(self, which: Tensor) -> None:
        self.live[which] = False
        self.all_live = self.all_live and not len(which)

    def note(self, images: Tensor, logits: Tensor) -> None:
        # Copies: the library goes on to write into its own.
        self.points, self.logits = images.detach().clone(), logits.detach().clone()

    def answer(self, network: Network, images: Tensor) -> Tensor:
        """Return the logits of all rows, (rows, classes)."""
        self.done += 1
        following = images.requires_grad and torch.is_grad_enabled()
        if not self.all_live and not bool(self.live.any()):
            raise AllBrokenError
        if following and self.remembers and not self.looks_ahead and self.done == self.num_forwards:
            logits = self.without_gradient(network, images)
        elif self.looks_ahead and self.remembers:
            logits = self.with_gradient(network, images) if following else self.ahead(network, images)
        else:
            logits = self.computed(network, images, None if self.all_live else self.live)
        self.note(images, logits)
        return logits

    def computed(self, network: Network, images: Tensor, which: Tensor | None) -> Tensor:
        """Return logits, computed of the given rows (None: all), and of the others those that are known."""
        if which is None:
            return network(images, self.rows)
        rows = which.nonzero().squeeze(1)
        if not len(rows):
            return self.logits
        logits = network(images[rows], self.rows[rows])
        if not len(self.logits):  # rows that had fallen before: any wrong answer will do
            num_classes = logits.shape[1]
            self.logits = nn.functional.one_hot((self.labels + 1) % num_classes, num_classes).to(logits.dtype)
        return self.logits.index_copy(0, rows, logits)

    def without_gradient(self, network: Network, images: Tensor) -> Tensor:
        """Answer APGD's last point, of which it looks at the logits alone."""
        with torch.no_grad():
            points = images.detach()
            logits = self.computed(network, points, None if self.all_live else self.live)
        return Told.apply(logits, images, torch.zeros_like(points), torch.ones_like(self.live), None)

    def ahead(self, network: Network, images: Tensor) -> Tensor:
        """Answer whether a point is adversarial, and work out the gradient that will be asked for where it is not.

        Where it is, FAB goes back towards the clean image, and asks about another point.
        """
        todo = self.live & ~self.known(images)
        self.has_gradient = torch.zeros_like(self.live)
        if self.direction is None or self.done == self.num_forwards:
            return self.computed(network, images, todo)
        logits = self.computed(network, images, todo & self.crossed)
        rows = (todo & ~self.crossed).nonzero().squeeze(1)
        if len(rows):
            with torch.enable_grad():
                points = images[rows].detach().requires_grad_()
                said = network(points, self.rows[rows])
                # Not as grad_outputs, for which torch would import sympy.
                (gradient,) = torch.autograd.grad((said * self.direction[rows]).sum(), points)
            logits = logits.index_copy(0, rows, said.detach())
            self.gradient = torch.zeros_like(images).index_copy(0, rows, gradient)
            self.has_gradient[rows] = True
        wrong = logits.argmax(1) != self.labels
        self.crossed, self.crossed_last = wrong | self.crossed_last, wrong
        return logits

    def with_gradient(self, network: Network, images: Tensor) -> Tensor:
        known = self.known(images) & self.has_gradient
        logits = self.computed(network, images, self.live & ~known)
        if self.direction is None:
            logits.register_hook(self.note_direction)
        if not len(self.gradient):
            return logits
        return Told.apply(logits, images, self.gradient, known, self.direction)

    def note_direction(self, gradient: Tensor) -> None:
        self.direction = gradient.clone()

    def known(self, images: Tensor) -> Tensor:
        return equal_rows(images, self.points) if len(self.points) else torch.zeros_like(self.live)


class Queries:
    """A run of Square: of each image that is left, in order, a point at a time is asked about.

    A point that equals the best one so far has its answer, and is no better. The library leaves an image out as
    soon as its margin is not positive.
    """

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels
        self.left = torch.arange(len(rows), device=rows.device)
        self.best = self.logits = torch.empty(0)
        self.margin = torch.full((len(rows),), torch.inf, device=rows.device)

    def expects(self, images: Tensor) -> bool:
        return len(images) == len(self.left)

    def answer(self, network: Network, images: Tensor) -> Tensor:
        left = self.left
        if len(self.best):
            best = self.best if len(left) == len(self.best) else self.best[left]
            rows = (~equal_rows(images, best)).nonzero().squeeze(1)
        if not len(self.best) or len(rows) == len(left):
            logits = network(images, self.rows[left])
        else:
            logits = self.logits[left]
            if len(rows):
                logits[rows] = network(images[rows], self.rows[left[rows]])
        self.judge(left, images, logits)
        return logits.clone()  # the library writes into it

    def judge(self, left: Tensor, images: Tensor, logits: Tensor) -> None:
        labels = self.labels[left, None]
        own = logits.gather(1, labels).squeeze(1)
        margin = own - logits.scatter(1, labels, -torch.inf).amax(1)
        if not len(self.best):
            self.best, self.logits = torch.empty_like(images), torch.empty_like(logits)
        better = (margin < self.margin[left]) | (margin <= 0)
        rows = better.nonzero().squeeze(1)
        if len(rows):
            which = left[rows]
            self.best[which], self.logits[which], self.margin[which] = images[rows], logits[rows], margin[rows]
            self.left = left[self.margin[left] > 0]
