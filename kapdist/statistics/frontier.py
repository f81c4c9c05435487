"""Two frontiers of clean against robust accuracy: how far one lies above the other where both reach.

A frontier is a way to train at several strengths of something, such as the deviation of its noise: straight lines
between its points, in the order of their clean accuracy. The difference of two is the mean vertical distance over
the clean accuracies that both reach; nothing is extrapolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kapdist.rng import generator
from kapdist.statistics.seeds import Interval
from kapdist.statistics.student import quantile, two_sided_p

IMAGE_DRAWS = 300  # their variance is known to a twelfth by then


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
    """The mean distance of two frontiers, each seed's own, and from which clean accuracy to which it is taken."""

    value: float
    per_seed: tuple[float, ...]
    clean: tuple[float, float]
    decides: Interval


def frontier_difference(
    first: Frontier, second: Frontier, seed: int = 0, margin: float = 0.0
) -> FrontierDifference | None:
    """Compare two frontiers over seeds and images; None where they, or those of some seed, do not meet.

    The variance is that of the seeds' own differences, over their number, and that of drawing the images again:
    what both share is counted twice, which errs on the wide side. t with Satterthwaite's degrees of freedom.

    Raises:
        ValueError: fewer than two seeds, or not the same number of seeds and images for both.
    """
    if first.clean.shape[1:] != second.clean.shape[1:] or first.clean.shape[1] < 2:
        raise ValueError(f"the same seeds, two or more, and images, found {first.clean.shape, second.clean.shape}")
    num_seeds, num_images = first.clean.shape[1:]
    own = [distance(*means_of_seed(first, n), *means_of_seed(second, n)) for n in range(num_seeds)]
    whole = distance(*means(first), *means(second))
    if whole is None or any(found is None for found in own):
        return None
    per_seed = np.array([found.mean for found in own if found])
    of_seeds = float(np.var(per_seed, ddof=1)) / num_seeds
    of_images = image_variance(first, second, seed)
    error = math.sqrt(of_seeds + of_images)
    spread = of_seeds**2 / (num_seeds - 1) + of_images**2 / (num_images - 1)
    freedom = min((of_seeds + of_images) ** 2 / spread, 1e9) if spread else 1e9
    half = quantile(0.975, freedom) * error
    p = two_sided_p((whole.mean - margin) / error, freedom) if error else float(whole.mean == margin)
    method = "t over seeds and images, of interpolated frontiers"
    interval = Interval(method, whole.mean - half, whole.mean + half, p)
    return FrontierDifference(whole.mean, tuple(per_seed.tolist()), (whole.low, whole.high), interval)


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


def means_of_seed(frontier: Frontier, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return frontier.clean[:, seed].mean(1), frontier.robust[:, seed].mean(1)


def image_variance(first: Frontier, second: Frontier, seed: int) -> float:
    """Return the variance of the distance when the images are drawn again, the same for both and all seeds."""
    num_images = first.clean.shape[2]
    tables = [table.mean(1) for table in (first.clean, first.robust, second.clean, second.robust)]
    random = generator(seed, "bootstrap", "images of frontiers")
    counts = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=IMAGE_DRAWS)
    drawn = [counts @ table.T / num_images for table in tables]
    found = [distance(*(table[n] for table in drawn)) for n in range(IMAGE_DRAWS)]
    return float(np.var([one.mean for one in found if one is not None], ddof=1))
