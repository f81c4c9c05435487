"""attacks/<name>/sanity.json: whether an attack's number can be believed, check by check."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kapdist.records.record import Count, Record, Share, read_record

SINGLE_DRAW_CHANCE = 0.05  # of the images: by how much single draws may differ without meaning anything
Status = Literal["pass", "warn", "fail", "not asked"]


class CheckResult(Record):
    """One number of the report and how it was judged."""

    name: str
    group: int
    group_title: str
    title: str
    cause: str
    """A key word; `meaning` says it in a sentence."""
    meaning: str
    source: str
    """The paper that asks for it, and its address."""
    value: float | None
    warn: float | None
    fail: float | None
    worse: Literal["above", "below"]
    status: Status


class Curve(Record):
    """Points of a line; `y` is None where nothing could be measured."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]
    unbounded: float | None = None
    """The last point, where there is no bound on the perturbation."""


class Landscape(Record):
    """The loss on a square grid around an image, steps in units of eps; rows follow the gradient."""

    steps: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]


class Curves(Record):
    """What is drawn; lines over draws exist for models with noise alone."""

    iterations: Curve
    eps: Curve
    neighbours: Curve
    landscape: Landscape
    draws: Curve | None = None
    agreement: Curve | None = None


class Remedy(Record):
    """A stronger attack, on the images that were left when its turn came."""

    attack: str
    causes: tuple[str, ...]
    """That call for it."""
    num_attacked: Count
    num_broken: Count
    single_draw: Share | None = None
    """Share of single draws of a random model's randomness that are right on what it made of those images."""
    how: str | None = None
    """What it did on this model, where that was found by looking."""
    skipped: str | None = None
    """Why it was not run."""


class Acted(Record):
    """What stronger attacks left of the images that the examined attack had left."""

    attack: str
    """Whose verdict it is."""
    plan_fingerprint: str | None = None
    """Of the attack whose records were read; None: the report's own attack with gradients."""
    num_images: Count
    """Images that were examined and are in those records."""
    num_robust: Count
    """That the attack left."""
    num_left: Count
    """That the remedies left too."""
    forgiven: Count = 0
    """As many fewer are chance, where the model draws random numbers."""
    single_draw: Share | None = None
    """Share of single draws that are right on adversarial images of the report's own attack, of what it left."""
    single_draw_left: Share | None = None
    """The same on the worst images of all attacks."""
    remedies: tuple[Remedy, ...]

    @property
    def robust_accuracy(self) -> float:
        return self.num_robust / self.num_images

    @property
    def left(self) -> float:
        """The accuracy that is left, a share of the examined images."""
        return self.num_left / self.num_images

    def after(self) -> list[tuple[Remedy, float]]:
        """Return each remedy with the share of the examined images that was left after it."""
        gone = itertools.accumulate(remedy.num_broken for remedy in self.remedies)
        left = ((self.num_robust - count) / self.num_images for count in gone)
        return list(zip(self.remedies, left, strict=True))

    @property
    def single_draws_fall(self) -> bool:
        if self.single_draw is None or self.single_draw_left is None:
            return False
        return (self.single_draw - self.single_draw_left) * self.robust_accuracy > SINGLE_DRAW_CHANCE

    @property
    def believed(self) -> bool:
        """Whether the attack's verdict stands."""
        return self.num_left + self.forgiven >= self.num_robust and not self.single_draws_fall

    def in_words(self) -> str:
        """Return a sentence: what the attack said, and what was left after each remedy that broke something."""
        told = [f"with {remedy.attack} {said(left)} are left" for remedy, left in self.after() if remedy.num_broken]
        words = f"{self.attack} said {said(self.robust_accuracy)} robust of {self.num_images} images"
        words += f"; {', '.join(told)}" if told else "; stronger attacks broke none of them"
        if self.single_draws_fall:
            words += (
                f"; a single draw is right on {said(self.single_draw)} of them under averaged gradients, "
                f"on {said(self.single_draw_left)} under the worst of all attacks"
            )
        return words


def believed_of(acted: Acted | None, plan_fingerprint: str | None) -> bool | None:
    """Return whether stronger attacks left an attack's number standing; None where none was tried on its verdicts.

    Args:
        plan_fingerprint: the attack's; None: the report's own attack, where there is no other.
    """
    if acted is None or acted.plan_fingerprint != plan_fingerprint:
        return None
    return acted.believed


def said(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


class Sanity(Record):
    """The file."""

    format: Literal[1] = 1
    name: str
    run: str = ""
    norm: str
    eps: float = Field(gt=0)
    noise: str
    seed: int = 0
    iterations: Count
    restarts: Count
    queries: Count = 0
    surrogate: str | None = None
    """The run whose adversarial images were tried too."""
    device: str | None = None
    threads: int | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)
    images_sha256: str | None = None
    weights_sha256: str | None = None
    factory: str | None = None
    """Of a model that is not the run's own."""
    notes: tuple[str, ...] = ()
    verdict: Status
    causes: tuple[str, ...]
    """Of checks that failed."""
    suspected: tuple[str, ...]
    """Of checks that warned alone."""
    num_images: Count
    num_clean_correct: Count
    draws: Count
    checks: tuple[CheckResult, ...]
    attacks: dict[str, float]
    """Accuracy under each of the report's own attacks."""
    curves: Curves
    acted: Acted | None = None
    """None: no cause called for anything, or the report is of a version that did nothing about one."""
    forwards: Count
    backwards: Count
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """Return JSON values; a curve that nobody asked for is left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    def count(self, status: Status) -> int:
        return sum(check.status == status for check in self.checks)


def read_sanity(path: Path) -> Sanity:
    """Read a sanity report.

    Raises:
        InputError: the file is none.
    """
    return read_record(Sanity, path, "kapdist attack sanity writes it again")
