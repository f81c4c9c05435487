"""Two frontiers of clean against robust accuracy: how far one lies above the other where both reach.

A frontier is a way to train at several strengths of something, such as the deviation of its noise: straight lines
between its points, in the order of their clean accuracy. The difference of two is the mean vertical distance over
the clean accuracies that both reach; nothing is extrapolated.

Products of tables are of whole numbers, or summed by NumPy itself: a BLAS rounds otherwise on another CPU, which
decides whether two points tie; a study's numbers are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kapdist.rng import generator
from kapdist.statistics.seeds import (
    Interval,
    as_wide_as_images_tell,
    crossed_interval,
    least_variance,
    of_two_parts,
)
from kapdist.statistics.student import quantile

IMAGE_DRAWS = 300  # their variance is known to a twelfth by then
SEED_DRAWS = 300
BAND_POINTS = 25
MEETING = 1.0  # standard errors that what both reach has to be wide
STEP = 0.1  # of a seed's weight; a smaller one would blow up the jump where two points change their order
METHOD = "t over seeds and images, of interpolated frontiers"


@dataclass(frozen=True)
class Frontier:
    """What an arm's models got right: (points, seeds, images) of bool, without an attack and under one."""

    clean: np.ndarray
    robust: np.ndarray

    def __post_init__(self) -> None:
        if self.clean.shape != self.robust.shape or self.clean.ndim != 3 or 0 in self.clean.shape:
            raise ValueError(f"points x seeds x images, alike, found {self.clean.shape} and {self.robust.shape}")


@dataclass(frozen=True)
class FrontierDifference:
    """The mean distance of two frontiers, and from which clean accuracy to which it is taken."""

    value: float
    per_seed: tuple[float, ...]
    """What each seed says of it: the distance and the seed's influence on it; their mean is the distance."""
    clean: tuple[float, float]
    decides: Interval


def frontier_difference(
    first: Frontier, second: Frontier, seed: int = 0, margin: float = 0.0
) -> FrontierDifference | None:
    """Compare two frontiers over seeds and images; None where they do not meet, or no more than by chance.

    What is compared are the frontiers of all seeds together. Their distance varies by the seeds as the
    infinitesimal jackknife has it (Jaeckel 1972; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling
    Plans", 6.3), and by drawing the images again: what both parts share is counted twice, which errs on the wide
    side. The frontiers of single seeds bend otherwise, and may not meet: tests that rest on them reject up to three
    times too often.

    Raises:
        ValueError: fewer than two seeds, or not the same number of seeds and images for both.
    """
    if first.clean.shape[1:] != second.clean.shape[1:] or first.clean.shape[1] < 2:
        raise ValueError(f"the same seeds, two or more, and images, found {first.clean.shape, second.clean.shape}")
    num_seeds, num_images = first.clean.shape[1:]
    whole, own = distance(*means(first), *means(second)), influences(first, second)
    drawn = image_draws(first, second, seed)
    if whole is None or own is None or meet_by_chance(first, second, drawn):
        return None
    of_seeds = max(float(np.var(own, ddof=1)), least_variance(num_images)) / num_seeds
    parts, freedoms = (of_seeds, image_variance(drawn)), (num_seeds - 1, num_images - 1)
    found = of_two_parts(whole.mean, parts, freedoms, METHOD, margin)
    interval = as_wide_as_images_tell(found, whole.mean, num_images, margin)
    return FrontierDifference(whole.mean, tuple((whole.mean + own).tolist()), (whole.low, whole.high), interval)


def influences(first: Frontier, second: Frontier) -> np.ndarray | None:
    """Return how fast the distance grows with each seed's weight; None where the frontiers hardly meet."""
    tables = [table.mean(2) for table in (first.clean, first.robust, second.clean, second.robust)]
    found = []
    for pair in seed_weights(first.clean.shape[1]):
        sides = [distance(*((table * weights).sum(1) for table in tables)) for weights in pair]
        if sides[0] is None or sides[1] is None:
            return None
        found.append((sides[0].mean - sides[1].mean) / (2 * STEP))
    return np.array(found)


def seed_weights(num_seeds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each seed the weights of all when it counts a little more, and a little less."""
    equal = np.full(num_seeds, 1 / num_seeds)
    for towards in np.eye(num_seeds) - equal:
        yield equal + STEP * towards, equal - STEP * towards


def meet_by_chance(first: Frontier, second: Frontier, drawn: Sequence[np.ndarray]) -> bool:
    """Tell whether what both reach is no wider than the chance of seeds and images moves its ends.

    Points that reach the other frontier as their seeds were less accurate withstand less by the same chance: where
    two frontiers are one and their ends lie side by side, each tenth study would say that they differ.
    """
    tables, own = (first.clean.mean(2), second.clean.mean(2)), []
    for pair in seed_weights(first.clean.shape[1]):
        more, less = (common(*((table * weights).sum(1) for table in tables)) for weights in pair)
        own.append((more - less) / (2 * STEP))
    variance = np.var(own, ddof=1) / len(own) + np.var(common(drawn[0], drawn[2]), ddof=1)
    return bool(common(*(table.mean(1) for table in tables)) <= MEETING * math.sqrt(variance))


def common(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how much clean accuracy two frontiers, (..., points) each, have in common; below 0 what is between."""
    return np.minimum(clean.max(-1), other.max(-1)) - np.maximum(clean.min(-1), other.min(-1))


@dataclass(frozen=True)
class Distance:
    """Mean height of one broken line above another, and where both are."""

    mean: float
    low: float
    high: float


def distance(
    clean: np.ndarray, robust: np.ndarray, other_clean: np.ndarray, other_robust: np.ndarray
) -> Distance | None:
    """Return how far one broken line lies above another on average; None where they have no stretch in common."""
    low, high = max(clean.min(), other_clean.min()), min(clean.max(), other_clean.max())
    if not low < high:
        return None
    knots = np.unique(np.concatenate([[low, high], clean, other_clean]).clip(low, high))
    gap = heights(clean, robust, knots) - heights(other_clean, other_robust, knots)
    area = float(((gap[1:] + gap[:-1]) / 2 * np.diff(knots)).sum())
    return Distance(area / (high - low), float(low), float(high))


def heights(clean: np.ndarray, robust: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate; points of one clean accuracy count as their mean."""
    places, which = np.unique(clean, return_inverse=True)
    mean = np.bincount(which.reshape(-1), robust) / np.bincount(which.reshape(-1))
    return np.interp(at, places, mean)


def means(frontier: Frontier) -> tuple[np.ndarray, np.ndarray]:
    return frontier.clean.mean((1, 2)), frontier.robust.mean((1, 2))


def image_draws(first: Frontier, second: Frontier, seed: int) -> list[np.ndarray]:
    """Return four (draws, points) of accuracies on images drawn again, the same ones for all seeds."""
    num_seeds, num_images = first.clean.shape[1:]
    tables = [table.sum(1) for table in (first.clean, first.robust, second.clean, second.robust)]
    random = generator(seed, "bootstrap", "images of frontiers")
    counts = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=IMAGE_DRAWS)
    return [counts @ table.T / (num_seeds * num_images) for table in tables]


def image_variance(drawn: Sequence[np.ndarray]) -> float:
    """Return the variance of the distance over images drawn again."""
    found = [distance(*(table[n] for table in drawn)) for n in range(IMAGE_DRAWS)]
    return float(np.var([one.mean for one in found if one is not None], ddof=1))


@dataclass(frozen=True)
class Band:
    """A frontier and where it may lie: 95% at each clean accuracy between its ends, for each of them alone."""

    clean: np.ndarray
    robust: np.ndarray
    low: np.ndarray
    high: np.ndarray
    method: str


def band(frontier: Frontier, seed: int = 0) -> Band:
    """Return the region in which a frontier lies: its height at each clean accuracy, seeds and images drawn again.

    Both are drawn, and the points move in both directions, through the interpolation. The bootstrap gives the
    variances, that of the seeds times S / (S - 1); the width is t's, with Satterthwaite's degrees of freedom (in
    quarters, rounded down), as the percentiles of so few seeds would be too narrow. With one seed the images alone.
    """
    num_seeds, num_images = frontier.clean.shape[1:]
    clean, robust = means(frontier)
    at = np.linspace(clean.min(), clean.max(), BAND_POINTS)
    random = generator(seed, "bootstrap", "region of a frontier")
    images = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=IMAGE_DRAWS)
    of_images = variance_of_heights(frontier, images, 1, at)
    of_seeds = np.zeros_like(of_images)
    if num_seeds > 1:
        seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=SEED_DRAWS)
        drawn = variance_of_heights(frontier, seeds, 2, at)
        of_seeds = drawn * num_seeds / (num_seeds - 1)
    parts = zip(of_seeds.tolist(), of_images.tolist(), strict=True)
    freedoms = [freedom_of(*pair, num_seeds, num_images) for pair in parts]
    factors = [quantile(0.975, math.floor(4 * freedom) / 4) for freedom in freedoms]
    half = np.array(factors) * np.sqrt(of_seeds + of_images)
    middle = heights(clean, robust, at)
    method = "bootstrap over seeds and images, t" if num_seeds > 1 else "bootstrap over images, of one seed alone"
    return Band(at, middle, np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1), method)


def variance_of_heights(frontier: Frontier, counts: np.ndarray, over: int, at: np.ndarray) -> np.ndarray:
    """Return the variance of a frontier's height over draws.

    Args:
        counts: (draws, units) of how often each image, or seed, is drawn; as many draws as there are of them.
        over: the axis of the others, 1 of the seeds or 2 of the images.
    """
    num_cells = frontier.clean.shape[1] * frontier.clean.shape[2]
    clean, robust = (counts @ side.sum(over).T / num_cells for side in (frontier.clean, frontier.robust))
    drawn = [heights(*pair, at) for pair in zip(clean, robust, strict=True)]
    return np.var(drawn, axis=0, ddof=1)


def freedom_of(of_seeds: float, of_images: float, num_seeds: int, num_images: int) -> float:
    """Return the degrees of freedom of a variance that has two parts (Satterthwaite 1946)."""
    spread = of_seeds**2 / max(1, num_seeds - 1) + of_images**2 / max(1, num_images - 1)
    return min((of_seeds + of_images) ** 2 / spread, 1e9) if spread else 1e9


def dominance(first: Frontier, second: Frontier) -> float:
    """Return the p-value of "the first does not dominate the second".

    It dominates where each point of the second has a point of the first that is better on both, without an attack
    and under one. Both have to be shown, for all of the second's points, so the largest of their p-values holds
    (intersection-union, Berger 1982); the choice among the first's points is paid for by their number (Bonferroni).

    Raises:
        ValueError: as `frontier_difference`.
    """
    if first.clean.shape[1:] != second.clean.shape[1:] or first.clean.shape[1] < 2:
        raise ValueError(f"the same seeds, two or more, and images, found {first.clean.shape, second.clean.shape}")
    choices = len(first.clean)
    return max(
        min(1.0, choices * min(max(one_sided_p(first, a, second, b)) for a in range(choices)))
        for b in range(len(second.clean))
    )


def one_sided_p(first: Frontier, a: int, second: Frontier, b: int) -> tuple[float, float]:
    """Return the p-values of "point a is no better than point b", without an attack and under one."""
    found = []
    for mine, theirs in ((first.clean[a], second.clean[b]), (first.robust[a], second.robust[b])):
        differences = mine.astype(np.int8) - theirs.astype(np.int8)
        p = crossed_interval(differences).p
        found.append(p / 2 if differences.mean() > 0 else 1 - p / 2)
    return found[0], found[1]
