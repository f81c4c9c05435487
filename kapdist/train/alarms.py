"""What robust validations say of a training when they are looked at one after another.

Catastrophic overfitting (Wong et al. 2020, https://arxiv.org/abs/2001.03994, section 5.4; Andriushchenko and
Flammarion 2020, https://arxiv.org/abs/2007.02617): training on one step of an attack suddenly wins against that
step alone. Robust accuracy drops towards zero while the training loss goes down.

Robust overfitting (Rice et al. 2020, https://arxiv.org/abs/2002.11569): robust accuracy falls slowly and for long,
while the training loss goes down.

And of their images: a validation on images of the training says nothing about new ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np

from kapdist.data.beton.layout import BetonInfo

SHARED = 0.01  # of the validation's images; fewer move no accuracy by more than its interval: data sets have a few
COLLAPSED = 0.5  # of the best robust accuracy: at most so much is left of it
STANDARD_ERRORS = 4.0  # of the difference of two accuracies of so many images, which a collapse exceeds
WINDOW = 5  # validations that are averaged before and after a long fall; and for which an alarm is not repeated
SMALLEST_FALL = 0.02  # of such means
FEWEST_IMAGES = 3  # as many are lost in it at least
NOISE_MULTIPLE = 4.0  # of the standard deviation of such a difference, by how validations scatter
MEAN_STEP = 2 / math.sqrt(math.pi)  # mean of |a - b|, both of one normal distribution, in its standard deviations


class Watched(NamedTuple):
    """One robust validation."""

    epoch: float
    accuracy: float
    loss: float | None
    """Mean training loss since the validation before; None where it is not known."""


class Alarm(NamedTuple):
    name: str
    text: str


def images_in_both(data: BetonInfo, validation: BetonInfo) -> Alarm | None:
    """Say how many images of the validation are in the training, too, by the checksums of their stored bytes."""
    shared = int(np.isin(validation.checksums, data.checksums).sum())
    if shared <= SHARED * validation.num_images:
        return None
    name, found = "images in both", f"{shared:,} of {validation.num_images:,} validation images are in the training"
    return Alarm(name, f"{name}: {found}, too; accuracy on them says nothing about new images")


def new_alarms(history: Sequence[Watched], num_images: int) -> list[Alarm]:
    """Return the alarms that the last validation gives and none of the WINDOW before it gave."""
    found = []
    for name, rule in RULES.items():
        text = rule(history, num_images)
        before = (rule(history[:-back], num_images) for back in range(1, min(WINDOW, len(history) - 1) + 1))
        if text is not None and not any(before):
            found.append(Alarm(name, f"{name}: {text}"))
    return found


def collapse(history: Sequence[Watched], num_images: int) -> str | None:
    """Say how robust accuracy has collapsed since its best, beyond what chance does to that many images."""
    *earlier, now = history
    if len(earlier) < 2:
        return None
    # The best that two in a row had: one alone may be chance.
    best = max((lower(*pair) for pair in pairwise(earlier)), key=lambda seen: seen.accuracy)
    chance = STANDARD_ERRORS * math.hypot(*(standard_error(seen.accuracy, num_images) for seen in (best, now)))
    fall = best.accuracy - now.accuracy
    if now.accuracy > COLLAPSED * best.accuracy or fall <= chance or not improved(best.loss, now.loss):
        return None
    return (
        f"robust accuracy fell from {best.accuracy:.1%} (epoch {best.epoch:g}) to {now.accuracy:.1%} (epoch "
        f"{now.epoch:g}) while the training loss went down from {best.loss:.4g} to {now.loss:.4g}. With mode fast "
        "adversarial.start=n-fgsm, a smaller step_size or mode pgd may avoid it"
    )


def long_fall(history: Sequence[Watched], num_images: int) -> str | None:
    """Say how far the mean of the last validations lies below the best mean of as many before them.

    A collapse that lasts is none.
    """
    if len(history) < 2 * WINDOW or collapse(history, num_images) is not None:
        return None
    now = history[-WINDOW:]
    earlier = [history[end - WINDOW : end] for end in range(WINDOW, len(history) - WINDOW + 1)]
    best = max(earlier, key=mean_accuracy)
    chance = NOISE_MULTIPLE * scatter(history) * math.sqrt(2 / WINDOW)
    fall, losses = mean_accuracy(best) - mean_accuracy(now), (mean_loss(best), mean_loss(now))
    if fall <= max(SMALLEST_FALL, FEWEST_IMAGES / num_images, chance) or not improved(*losses):
        return None
    return (
        f"robust accuracy, the mean of {WINDOW} validations, fell from {mean_accuracy(best):.1%} (until epoch "
        f"{best[-1].epoch:g}) to {mean_accuracy(now):.1%} (until epoch {now[-1].epoch:g}) while the training loss "
        f"went down from {losses[0]:.4g} to {losses[1]:.4g}. train.best=robust keeps the weights of the best"
    )


RULES = {"catastrophic overfitting": collapse, "robust overfitting": long_fall}


def lower(one: Watched, other: Watched) -> Watched:
    return min(one, other, key=lambda seen: seen.accuracy)


def standard_error(accuracy: float, num_images: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def scatter(history: Sequence[Watched]) -> float:
    """Return the standard deviation of a validation about its trend, by the steps from one to the next.

    The trend's own steps count too, so it is rather too large.
    """
    steps = [abs(later.accuracy - earlier.accuracy) for earlier, later in pairwise(history)]
    return fmean(steps) / MEAN_STEP if steps else 0.0


def mean_accuracy(window: Sequence[Watched]) -> float:
    return fmean(seen.accuracy for seen in window)


def mean_loss(window: Sequence[Watched]) -> float | None:
    losses = [seen.loss for seen in window if seen.loss is not None]
    return fmean(losses) if losses else None


def improved(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after < before
