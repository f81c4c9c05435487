"""What is done about a cause: the stronger attacks that it calls for, on the images that the attack left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.sanity import stronger
from kapdist.sanity.effort import Effort
from kapdist.sanity.stronger import Case, SkippedError

ATTACKS: dict[str, Callable[[Case], None]] = {
    "averaged gradients": stronger.averaged_gradients,
    "members in turn": stronger.members_in_turn,
    "straight-through backward": stronger.straight_through,
    "gradients averaged near by": stronger.gradients_near_by,
    "double precision": stronger.double_precision,
    "more iterations and starts": stronger.more_starts,
    "one image at a time": stronger.one_at_a_time,
    "the model before its first call": stronger.first_call,
    "transfer": stronger.transfer,
    "classes alone": stronger.classes_alone,
    "scores alone": stronger.scores_alone,
}
"""In the order in which they are run, each on what is left; the cheap ones first."""

HIDDEN = "straight-through backward", "transfer", "scores alone"
REMEDIES: dict[str, tuple[str, ...]] = {
    "training mode": ("averaged gradients", "members in turn"),
    "state": ("the model before its first call",),
    "randomness": ("averaged gradients", "members in turn"),
    "batch": ("one image at a time",),
    "discrete output": ("straight-through backward", "transfer", "classes alone"),
    "shattered gradient": ("gradients averaged near by", *HIDDEN),
    "unfinished attack": ("more iterations and starts",),
    "rugged loss": ("more iterations and starts",),
    "masked gradient": HIDDEN,
    "saturated softmax": ("more iterations and starts", "straight-through backward"),
    "NaN gradient": HIDDEN,
    "non-differentiable step": HIDDEN,
    "vanishing gradient": ("double precision", *HIDDEN),
    "quantised input": HIDDEN,
    "false gradient": HIDDEN,
    "broken rules": (),
    "broken certificate": (),  # another certificate is called for, not another attack
}
"""Cause -> attacks. Of images that break the rules no attack can tell anything: that one is to be run again."""

CHECKS_OWN = "the checks' own attacks"


@dataclass(frozen=True)
class Verdicts:
    """What an attack found of the examined images, (batch,) bool each.

    Args:
        attack: its name in words.
        plan_fingerprint: of its plan; None for the report's own.
        known: which images it was given.
        robust: which it left.
    """

    attack: str
    plan_fingerprint: str | None
    known: Tensor
    robust: Tensor

    def to(self, device: torch.device) -> Verdicts:
        return Verdicts(self.attack, self.plan_fingerprint, self.known.to(device), self.robust.to(device))


def act(
    effort: Effort,
    right: Tensor,
    verdicts: Verdicts | None,
    causes: Sequence[str],
    surrogates: Sequence[nn.Module] = (),
    first: nn.Module | None = None,
) -> dict[str, Any]:
    """Run what the causes call for and return records/sanity.py:Acted as JSON values.

    Args:
        effort: of the images that the model has right, its attacks done.
        right: (batch,) which of the examined images those are.
        verdicts: of the attack whose number is in question; None: the report's own attack with gradients.
        causes: of checks that ask for something to be done.
        surrogates, first: as for a Case.
    """
    if verdicts is None:
        robust = right.clone()
        robust[right] = ~effort.white_box
        verdicts = Verdicts("The report's own PGD", None, torch.ones_like(right), robust)
    left = verdicts.robust[right].clone()
    course = Course(effort, left)
    course.take_own()
    asked = {name: [cause for cause in causes if name in REMEDIES[cause]] for name in ATTACKS}
    for name, why in asked.items():
        if why:
            course.run(name, why, surrogates, first)
    gone = sum(remedy["num_broken"] for remedy in course.remedies)
    return {
        "attack": verdicts.attack,
        "plan_fingerprint": verdicts.plan_fingerprint,
        "num_images": int(verdicts.known.sum()),
        "num_robust": int(verdicts.robust.sum()),
        "num_left": int(verdicts.robust.sum()) - gone,
        "forgiven": 1 if effort.draws > 1 else 0,
        "remedies": course.remedies,
        **course.all_single_draws(),
    }


class Course:
    """Attacks one after the other, each on the images that the ones before have left.

    Args:
        left: (images,) which stand; changed with every attack.
    """

    def __init__(self, effort: Effort, left: Tensor) -> None:
        self.effort, self.left, self.began = effort, left, left.clone()
        self.remedies: list[dict[str, Any]] = []
        self.worst = effort.main.last.clone()
        """Of a random model, the points on which the fewest single draws are right."""

    def take_own(self) -> None:
        """Count what attacks of the checks broke, which have been run already; a draw's chance is nothing."""
        if self.effort.draws == 1:
            broken = torch.stack(list(self.effort.broken.values())).any(0) & self.left
            self.note(CHECKS_OWN, [], int(self.left.sum()), int(broken.sum()))
            self.left &= ~broken

    def run(self, name: str, causes: list[str], surrogates: Sequence[nn.Module], first: nn.Module | None) -> None:
        rows = self.left.nonzero().squeeze(1)
        if not len(rows):
            self.note(name, causes, 0, 0, skipped="no image is left")
            return
        case = Case(self.effort.part(rows), surrogates, first)
        try:
            ATTACKS[name](case)
        except SkippedError as reason:
            self.note(name, causes, len(rows), 0, skipped=str(reason))
            return
        single = single_draws(case.effort, case.worst) if self.keep_worst(case, rows) else None
        self.left[rows[case.broken]] = False
        how = "; ".join(case.how) or None
        self.note(name, causes, len(rows), int(case.broken.sum()), single_draw=single, how=how)

    def keep_worst(self, case: Case, rows: Tensor) -> bool:
        """Keep points on which fewer single draws are right; False where nothing draws, or another model did."""
        if self.effort.draws == 1 or not case.right.isfinite().all():
            return False
        before = case.effort.single_draws(self.worst[rows], case.effort.judges)
        harder = case.right < before
        self.worst[rows[harder]] = case.worst[harder]
        return True

    def note(self, name: str, causes: list[str], attacked: int, broken: int, **more: Any) -> None:
        known = {"attack": name, "causes": causes, "num_attacked": attacked, "num_broken": broken}
        self.remedies.append(known | {key: value for key, value in more.items() if value is not None})

    def all_single_draws(self) -> dict[str, float]:
        """Return the share of what stood at first that single draws have right, before the remedies and after."""
        if self.effort.draws == 1 or not self.began.any():
            return {}
        began = self.effort.part(self.began)
        points = {"single_draw": self.effort.main.last, "single_draw_left": self.worst}
        return {key: single_draws(began, found[self.began]) for key, found in points.items()}


def single_draws(effort: Effort, points: Tensor) -> float:
    """Return the share of single draws that are right on points, of draws that have not chosen them."""
    return effort.single_draws(points, effort.others).mean().item()
