"""Shares of images with their 95% intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from kapdist.rng import generator

Z_95 = 1.959963984540054  # 97.5th percentile of the normal distribution
RESAMPLES = 2000


@dataclass(frozen=True)
class Proportion:
    """A share of images in [0, 1] with its 95% Wilson interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in asdict(self).values()):
            raise ValueError("shares from 0 to 1")


@dataclass(frozen=True)
class Resampled(Proportion):
    """A mean over images with its Wilson interval and that of a bootstrap over the images."""

    bootstrap_low: float
    bootstrap_high: float


def wilson(count: float, total: int) -> Proportion:
    """Return count / total with its 95% Wilson score interval (Wilson 1927, JASA 22:209).

    The count may be a sum of shares of images; their variance is at most that of whole ones.
    """
    share = count / total
    middle = (share + Z_95**2 / (2 * total)) / (1 + Z_95**2 / total)
    half = math.sqrt(share * (1 - share) / total + (Z_95 / (2 * total)) ** 2) * Z_95 / (1 + Z_95**2 / total)
    # At the ends the bound is 0 or 1 exactly; rounding must not put the share outside of its interval.
    low = 0.0 if count == 0 else middle - half
    high = 1.0 if count == total else middle + half
    return Proportion(value=share, low=low, high=high)


def resampled(successes: np.ndarray, trials: int, seed: int, purpose: str) -> Resampled:
    """Return the mean of successes / trials over images with both intervals.

    The bootstrap (Efron 1979) is that of percentiles, over images, as their draws belong together.

    Args:
        successes: (images,) integers from 0 to `trials`.
    """
    total = len(successes)
    share = wilson(float(successes.sum()) / trials, total)
    random = generator(seed, "bootstrap", purpose)
    # Resampling images is drawing how often each distinct number of successes comes.
    values, counts = np.unique(successes, return_counts=True)
    means = random.multinomial(total, counts / total, size=RESAMPLES) @ values / (total * trials)
    low, high = np.quantile(means, [0.025, 0.975])
    return Resampled(**asdict(share), bootstrap_low=float(low), bootstrap_high=float(high))
