"""Do gradients say how the model changes: are they there, true, and the same next door?

The margin is followed and not the cross-entropy, whose gradient a confident model may round to zero; that is a
number of its own. What a derivative should be is asked of the model in double precision where it can compute in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kapdist.attack.ball import Ball
from kapdist.sanity.points import interior, signs
from kapdist.sanity.subject import Subject, cross_entropy, margin

DIRECTIONS = 8
STEP = 1e-4  # of finite differences; pixels are in [0, 1]
WHISPER = 1e-5  # a change of every pixel that a quantiser does not hear and a float32 network does
QUANTILE = 0.1
DISTANCES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of eps
NEAR = 1 / 8
WORSE_IF_LOW = ("vanishing", "neighbours")


def measure(
    subject: Subject, sets: Sequence[Tensor], labels: Tensor, ball: Ball, seed: int
) -> dict[str, float | None]:
    """Return the worst number over sets of points, each shaped like the images: clean, in the ball, attacked."""
    double = subject.as_float64(sets[0])
    found = [numbers(subject, double, points, labels, ball, seed) for points in sets]
    worst: dict[str, float | None] = {}
    for name in found[0]:
        values = [value for value in (numbers[name] for numbers in found) if value is not None]
        pick = min if name in WORSE_IF_LOW else max
        worst[name] = pick(values) if values else None
    return worst


def numbers(
    subject: Subject, double: Subject | None, points: Tensor, labels: Tensor, ball: Ball, seed: int
) -> dict[str, float | None]:
    points = points.clamp(STEP, 1 - STEP)  # a model that clips its input has two derivatives at the border
    gradient, margins = subject.slope(points, labels, margin)
    sharp = double.slope(points.double(), labels, margin)[0] if double else gradient
    entropy, _ = subject.slope(points, labels, cross_entropy)
    finite = (gradient.isfinite() & entropy.isfinite()).flatten(1).all(1)
    gone, gone_sharp = is_zero(gradient), is_zero(sharp)
    return {
        "nan": 1 - share(finite),
        "zero": share(gone_sharp & gone),
        "underflow": share(gone & ~gone_sharp) if double else None,
        "vanishing": reach(gradient[~gone & finite], margins[~gone & finite], ball),
        "saturated": silenced(entropy[finite], gradient[finite]),
        "quantised": unchanged(subject, points, seed),
        "false": disagreement(double or subject, points.double() if double else points, labels, seed),
        "neighbours": neighbours(subject, gradient, points, labels, ball.resized(NEAR * ball.eps), seed),
    }


def is_zero(gradient: Tensor) -> Tensor:
    return (gradient == 0).flatten(1).all(1)


def share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def reach(gradient: Tensor, margins: Tensor, ball: Ball) -> float | None:
    """Return the lowest tenth's change of margin that the gradient promises within eps, relative to the margin."""
    if not len(gradient):
        return None
    promised = ball.reach(gradient.double()) / margins.double().abs().clamp(min=1e-30)
    return promised.quantile(QUANTILE).item()


def silenced(entropy: Tensor, gradient: Tensor) -> float:
    """Return the share of pixels that the margin depends on and the cross-entropy, rounded, does not."""
    heard = gradient != 0
    return share((entropy == 0)[heard])


def unchanged(subject: Subject, points: Tensor, seed: int) -> float:
    """Return the share of images whose logits do not change by a bit when every pixel changes a little."""
    changed = (points + WHISPER * signs(points, seed, "whisper")).clamp(0, 1)
    before, after = subject.logits(points), subject.logits(changed)
    return share((before == after).all(1))


def disagreement(subject: Subject, points: Tensor, labels: Tensor, seed: int) -> float | None:
    """Return how far backward is from finite differences: 0 the same, 1 unrelated or opposite; mean over images.

    |d - g| / (|d| + |g|), d and g the central differences and the gradient's along some random directions. Images
    whose gradient is zero or not finite are left to the checks that count them.
    """
    gradient, _ = subject.slope(points, labels, margin)
    asked = gradient.flatten(1).isfinite().all(1) & ~is_zero(gradient)
    pairs = []
    for number in range(DIRECTIONS):
        way = signs(points, seed, "direction", number)
        above, below = (margin(subject.logits(points + step * way), labels) for step in (STEP, -STEP))
        pairs.append(torch.stack([(above - below) / (2 * STEP), (gradient * way).flatten(1).sum(1)]))
    differences, promised = torch.stack(pairs, dim=-1).double()
    scale = differences.norm(dim=1) + promised.norm(dim=1)
    apart = (differences - promised).norm(dim=1) / scale.clamp(min=1e-30)
    return apart[asked].mean().item() if asked.any() else None


def neighbours(
    subject: Subject, gradient: Tensor, points: Tensor, labels: Tensor, near: Ball, seed: int
) -> float | None:
    """Return the mean cosine between the gradients at the points and at random ones near by."""
    beside, _ = subject.slope(interior(near, points, seed, "neighbour"), labels, margin)
    return cosine(gradient, beside)


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Return the mean cosine of gradients, over the images where both are finite and not zero."""
    one, other = one.flatten(1).double(), other.flatten(1).double()
    sizes = one.norm(dim=1), other.norm(dim=1)
    there = (sizes[0] > 0) & (sizes[1] > 0) & sizes[0].isfinite() & sizes[1].isfinite()
    if not there.any():
        return None
    units = [vectors[there] / size[there, None] for vectors, size in zip((one, other), sizes, strict=True)]
    return cosine_similarity(*units).mean().item()


def by_distance(subject: Subject, images: Tensor, labels: Tensor, ball: Ball, seed: int) -> list[float | None]:
    """Return the mean cosine between gradients at a clean image and at each of DISTANCES x eps from it."""
    gradient, _ = subject.slope(images, labels, margin)
    near = (ball.resized(distance * ball.eps) for distance in DISTANCES)
    return [neighbours(subject, gradient, images, labels, ball, seed) for ball in near]


def by_draws(subject: Subject, images: Tensor, labels: Tensor, counts: Sequence[int]) -> list[float | None]:
    """Return, for each count k, the mean cosine between two gradients averaged over k draws each, none shared."""
    sums = [torch.zeros_like(images), torch.zeros_like(images)]
    found, done = [], 0
    for count in counts:
        for total in sums:
            total += (count - done) * subject.slope(images, labels, margin, subject.fresh(count - done))[0]
        done = count
        found.append(cosine(*sums))
    return found
