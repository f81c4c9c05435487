"""How often an image passes through the model in each attack, from the attack's own definition. Pure.

The worst case, which a robust image is: no attack ever succeeds, so none stops early. An upper bound for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.config.attack import is_function
from kapdist.config.surrogates import TRANSFER
from kapdist.records.attack_plan import AttackPlan, OwnSettings, Settings, kind_of

SHRINKING_STAGES = 3  # APGD with a shrinking eps (L1, Croce & Hein 2021) starts thrice, with 3, 2 and 1 times eps


@dataclass(frozen=True)
class Passes:
    """Passes of one image that stays robust; the forward that decides the verdict included."""

    name: str
    forwards: int
    backwards: int

    @property
    def total(self) -> int:
        return self.forwards + self.backwards


def passes_outside(plan: AttackPlan, num_images: int, num_broken: int) -> int:
    """Return the forward passes outside of attacks: clean predictions, and if deterministic all verdicts again."""
    return num_images * plan.eot + (num_images + num_broken if plan.deterministic else 0)


def passes_per_image(
    attacks: Sequence[str], settings: Settings, num_classes: int, own: OwnSettings | None = None
) -> tuple[Passes, ...]:
    """Return the passes of each attack in order, the forward of the clean prediction first."""
    counted = [Passes("clean", 1, 0)]
    for position, name in enumerate(attacks):
        # The library's fab-t sets fab's restarts to one, and so they stay for a fab that follows.
        restarts = 1 if "fab-t" in attacks[:position] else settings.fab_restarts
        found = own_passes(name, settings, num_classes, own or OwnSettings())
        counted.append(found or library_passes(name, settings, num_classes, restarts))
    return tuple(counted)


def own_passes(name: str, settings: Settings, num_classes: int, own: OwnSettings) -> Passes | None:
    """Return the passes of an attack of ours or of the user's, the verdict's included; None of the library's."""
    if name == "random-noise":
        return Passes(name, own.random_draws + 1, 0)
    if name == "hard-label":
        return Passes(name, own.hard_label_queries + 1, 0)
    if name == "fmn":
        return Passes(name, own.fmn_steps + 1, own.fmn_steps)
    if is_function(name):  # what it asks for is not known; the verdict's is
        return Passes(name, 1, 0)
    if kind_of(name) == TRANSFER:  # the model predicts, the surrogate is attacked, once for each loss
        losses, steps = min(2, num_classes - 1), settings.iterations + 1
        return Passes(name, losses * (1 + 1 + steps) + 1, losses * steps)
    return None


def library_passes(name: str, settings: Settings, num_classes: int, fab_restarts: int) -> Passes:
    """Return one attack's passes; each predicts the clean image first, and its result is predicted last."""
    if name in ("apgd-ce", "apgd-dlr"):
        steps = settings.apgd_restarts * apgd_steps(settings)
        return Passes(name, 2 + steps, steps)
    if name == "apgd-t":
        steps = settings.apgd_targets * apgd_steps(settings)
        return Passes(name, 2 + settings.apgd_targets + steps, steps)  # each target is chosen by a forward
    if name == "fab":
        # Every iteration: a forward, a backward per class, a forward; before and after them a prediction.
        steps = fab_restarts * settings.iterations
        return Passes(name, 2 + 2 * fab_restarts + 2 * steps, num_classes * steps)
    if name == "fab-t":
        steps = settings.fab_targets * settings.iterations
        return Passes(name, 2 + 3 * settings.fab_targets + 2 * steps, steps)
    return Passes(name, 4 + settings.square_queries, 0)  # the stripes it starts from, and its result, count apart


def screen_passes(steps: int) -> Passes:
    """Return those of the short APGD that goes first: a start and its steps, a prediction before and after."""
    return Passes("screen", steps + 3, steps + 1)


def straight_through(passes: Passes) -> Passes:
    """Return the passes where another module gives the gradient: every one of it passes both forward."""
    return Passes(passes.name, passes.forwards + passes.backwards, passes.backwards)


def averaged(passes: Passes, draws: int, recomputed: bool) -> Passes:
    """Return the passes on a model that averages draws; a gradient in parts takes every forward twice."""
    twice = passes.backwards if recomputed else 0
    return Passes(passes.name, draws * (passes.forwards + twice), draws * passes.backwards)


def apgd_steps(settings: Settings) -> int:
    """Return the gradients of one APGD run: one at every start and one per iteration, each over `eot` draws."""
    stages = SHRINKING_STAGES if settings.apgd_shrinking_eps else 1
    return settings.eot * (stages + settings.iterations)
