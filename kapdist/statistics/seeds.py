"""Two ways to train, each with several seeds, on the same images: is there a difference beyond both chances?

Seeds are the outer unit, images the inner one. Both are samples, and every seed meets every image, so the variance
of the mean difference d is that of a crossed design (Searle, Casella & McCulloch 1992, "Variance Components", 4.3):

    var(d) = var_seed / S + var_image / N + var_rest / (S N)

Each part has a quantile of its own: t's of S - 1 degrees of freedom for what the seeds vary by, of N - 1 for what
the images add. One t for both, its degrees of freedom estimated from two or three seeds, rejects at 1% three to
seven times too often, and Holm's correction asks for such levels.

A t-interval over the S differences per seed alone takes the images as given: it says what other seeds would give on
these very images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from kapdist.rng import generator
from kapdist.statistics.intervals import RESAMPLES, Z_95
from kapdist.statistics.paired import compare
from kapdist.statistics.student import quantile, root, student_of_normal, two_sided_p

LEAST_P = 1e-300  # smaller ones are not told apart


@dataclass(frozen=True)
class Interval:
    """A 95% interval and what it is of; p-value of "no difference", NaN where the method gives none."""

    method: str
    low: float
    high: float
    p: float = math.nan


@dataclass(frozen=True)
class Variances:
    """What the mean difference varies by, as shares of its own variance: of seeds, images, and both."""

    seeds: float
    """Of the mean difference of one seed."""
    images: float
    """Of the mean difference of one image."""
    rest: float
    """Of one image of one seed, beyond both."""
    num_seeds: int
    num_images: int

    @property
    def of_the_mean(self) -> tuple[float, float]:
        """Variance of the mean over seeds and images: as the seeds tell it, and what the images add to that.

        The first holds the chance of both together (rest), which the images' mean square holds as well.
        """
        seeds = max(self.seeds, least_variance(self.num_images)) / self.num_seeds
        rest = self.rest / (self.num_seeds * self.num_images)
        return seeds, max(0.0, self.images / self.num_images - rest)


@dataclass(frozen=True)
class SeedDifference:
    """The mean difference over seeds and images, each seed's own, and its intervals."""

    value: float
    per_seed: tuple[float, ...]
    num_images: int
    decides: Interval
    """The one that a verdict rests on: over seeds and images together; with one seed, over images alone."""
    over_seeds: Interval | None
    """t over the seeds' differences, these images given; None with one seed."""
    bootstrap: Interval | None
    """Seeds and images drawn again; None with one seed, and too narrow with few."""


def seed_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, margin: float = 0.0) -> SeedDifference:
    """Compare two ways to train over their seeds and the images.

    Args:
        first, second: (seeds, images) of whether each seed's model is right on each image: the same seeds, or as
            many of each in any order, and the same images in the same order.
        seed: of the bootstrap.
        margin: the difference that the p-value of several seeds is of.

    Raises:
        ValueError: not the same images, or another number of seeds.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise ValueError(f"seeds x images, alike for both, found {first.shape} and {second.shape}")
    differences = first.astype(np.int8) - second.astype(np.int8)
    per_seed = differences.mean(1)
    several = len(differences) > 1
    return SeedDifference(
        value=float(differences.mean()),
        per_seed=tuple(float(value) for value in per_seed),
        num_images=differences.shape[1],
        decides=crossed_interval(differences, margin) if several else image_interval(first[0], second[0]),
        over_seeds=t_interval(per_seed) if several else None,
        bootstrap=bootstrap_interval(differences, seed) if several else None,
    )


def image_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """Return the interval of one seed, which says nothing of another."""
    found = compare(first, second)
    return Interval("score interval over images, of one seed alone", found.low, found.high, found.p)


def crossed_interval(differences: np.ndarray, margin: float = 0.0) -> Interval:
    """Return the t-interval whose variance has the seeds' part and the images', and the p-value of the margin."""
    found = variances(differences)
    mean, method = float(differences.mean()), "t over seeds and images"
    freedoms = found.num_seeds - 1, found.num_images - 1
    both = of_two_parts(mean, found.of_the_mean, freedoms, method, margin)
    # Seeds that agree by chance leave the images' own variance, which is measured.
    images = around(mean, math.sqrt(found.images / found.num_images), freedoms[1], method, margin)
    return as_wide_as_images_tell(widest(both, images), mean, found.num_images, margin)


def of_two_parts(
    mean: float, parts: tuple[float, float], freedoms: tuple[float, float], method: str, margin: float
) -> Interval:
    """Return the interval of a mean that varies by few seeds and many images, and the p-value of the margin.

    Each part of the variance has its own quantile of t (Zou & Donner 2008, Statistics in Medicine 27:1693): one t
    with degrees of freedom that are estimated from three seeds is too narrow.

    Args:
        parts, freedoms: the variance and its degrees of freedom, of the seeds and of the images.
    """
    (of_seeds, of_images), (freedom, many) = parts, freedoms
    if of_seeds == 0:
        return around(mean, math.sqrt(of_images), many, method, margin)

    def tail(t: float) -> float:
        return max(two_sided_p(t, freedom), LEAST_P)

    def half(t: float) -> float:
        """Return the half of the interval whose level is that of t."""
        of_many = student_of_normal(-NormalDist().inv_cdf(tail(t) / 2), many)
        return math.hypot(t * math.sqrt(of_seeds), of_many * math.sqrt(of_images))

    away, most = abs(mean - margin), 1.0
    while half(most) < away and tail(most) > LEAST_P:
        most *= 2
    p = tail(root(lambda t: half(t) - away, 0.0, most)) if away else 1.0
    reach = half(quantile(0.975, freedom))
    return Interval(method, max(mean - reach, -1.0), min(mean + reach, 1.0), p)


def accuracy_interval(right: np.ndarray) -> Interval:
    """Return the interval of an accuracy over seeds and images: (seeds, images) of whether each is right."""
    found = crossed_interval(np.asarray(right, np.float64))
    return replace(found, low=max(found.low, 0.0))


def as_wide_as_images_tell(found: Interval, mean: float, num_images: int, margin: float = 0.0) -> Interval:
    """Return an interval that is no narrower than this number of images leaves it where none differs from another.

    That no chance was seen does not say that there is none: so far reach the intervals of Wilson and Tango
    (`kapdist/statistics/paired.py`) at a count of 0.
    """
    return widest(found, around(mean, no_chance_seen(num_images) / Z_95, math.inf, found.method, margin))


def widest(one: Interval, other: Interval) -> Interval:
    """Return what holds both intervals of one mean, and the larger p-value."""
    return Interval(one.method, min(one.low, other.low), max(one.high, other.high), max(one.p, other.p))


def least_variance(num_images: int) -> float:
    """Return what an accuracy on so many images varies by within the step of one image.

    Two seeds that are equal to the last image are so by chance: what they vary by may be hidden in the rounding
    (Sheppard 1898, Proceedings of the London Mathematical Society 29:353).
    """
    return 1 / (12 * num_images**2)


def no_chance_seen(num_images: int) -> float:
    """Return how far from a share of 0 of so many images 95% of chances reach."""
    return Z_95**2 / (num_images + Z_95**2)


def t_interval(per_seed: np.ndarray) -> Interval:
    """Return the t-interval of a mean over seeds."""
    error = math.sqrt(float(np.var(per_seed, ddof=1)) / len(per_seed))
    return around(float(np.mean(per_seed)), error, len(per_seed) - 1, "t over seeds, on these images")


def around(mean: float, error: float, freedom: float, method: str, margin: float = 0.0) -> Interval:
    """Return the t-interval of a mean, a share or a difference of shares, and the p-value of the margin."""
    if error == 0:  # every seed alike, on these images
        return Interval(method, mean, mean, 1.0 if mean == margin else 0.0)
    half = quantile(0.975, min(freedom, 1e9)) * error
    p = two_sided_p((mean - margin) / error, min(freedom, 1e9))
    return Interval(method, max(mean - half, -1.0), min(mean + half, 1.0), p)


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """Return the percentiles of the mean over seeds drawn again and images drawn again, the same for all seeds.

    Source: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1:386.
    """
    num_seeds, num_images = differences.shape
    random = generator(seed, "bootstrap", "seeds and images")
    seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES)
    # Images on which all seeds differ alike are exchangeable: draw how often each such pattern comes.
    patterns, counts = np.unique(differences, axis=1, return_counts=True)
    images = random.multinomial(num_images, counts / num_images, size=RESAMPLES)
    means = np.einsum("rs,sp,rp->r", seeds, patterns, images, optimize=True) / (num_seeds * num_images)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval("bootstrap over seeds and images", float(low), float(high))


def variances(differences: np.ndarray) -> Variances:
    """Return the mean squares of a (seeds, images) table with one value in each cell.

    Raises:
        ValueError: fewer than two seeds or images, which have no variance.
    """
    num_seeds, num_images = differences.shape
    if min(num_seeds, num_images) < 2:
        raise ValueError(f"two seeds and two images or more, found {num_seeds} and {num_images}")
    seeds, images = differences.mean(1), differences.mean(0)
    rest = differences - seeds[:, None] - images[None, :] + differences.mean()
    return Variances(
        seeds=float(np.var(seeds, ddof=1)),
        images=float(np.var(images, ddof=1)),
        rest=float((rest**2).sum() / ((num_seeds - 1) * (num_images - 1))),
        num_seeds=num_seeds,
        num_images=num_images,
    )
