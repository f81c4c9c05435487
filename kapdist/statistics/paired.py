"""Two models on the same images: what the images on which only one of them is right are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kapdist.statistics.intervals import Z_95
from kapdist.statistics.student import root


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two shares of the same images, its 95% interval and the p-value of "there is none"."""

    num_images: int
    num_first: int
    """Images that only the first model is right on."""
    num_second: int
    """Images that only the second one is right on."""
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        """Share of the first minus share of the second."""
        return (self.num_first - self.num_second) / self.num_images


def paired_difference(num_first: int, num_second: int, num_images: int) -> PairedDifference:
    """Compare two models by the images that only one of them is right on, with Tango's interval and McNemar's test.

    Raises:
        ValueError: counts that no images have.
    """
    if num_images < 1 or min(num_first, num_second) < 0 or num_first + num_second > num_images:
        raise ValueError(f"counts of at most {num_images} images, found {num_first} and {num_second}")
    low, high = score_interval(num_first, num_second, num_images)
    p = mcnemar(num_first, num_second)
    return PairedDifference(num_images, num_first, num_second, low, high, p)


def compare(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """Compare two models image by image: (images,) of whether each is right."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"the same images for both, found {first.shape} and {second.shape}")
    return paired_difference(int((first & ~second).sum()), int((second & ~first).sum()), first.size)


def mcnemar(num_first: int, num_second: int) -> float:
    """Return the two-sided exact p-value: of n images, each as likely only the first's as only the second's.

    Source: McNemar 1947, Psychometrika 12:153, by the binomial distribution instead of its approximation.
    """
    n, fewer = num_first + num_second, min(num_first, num_second)
    if num_first == num_second:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    largest = max(logs)
    log_tail = largest + math.log(math.fsum(math.exp(value - largest) for value in logs)) - n * math.log(2)
    return min(1.0, 2 * math.exp(log_tail))


def score_interval(num_first: int, num_second: int, num_images: int) -> tuple[float, float]:
    """Return the 95% score interval of the difference of two shares of the same images.

    Source: Tango 1998, Statistics in Medicine 17:891, section 3: all differences that a score test at 5% keeps.
    """
    value = (num_first - num_second) / num_images

    def beyond(difference: float) -> float:
        return abs(_score(difference, num_first, num_second, num_images)) - Z_95

    low = -1.0 if value == -1 else root(beyond, -1.0, value)
    high = 1.0 if value == 1 else root(lambda difference: -beyond(difference), value, 1.0)
    return low, high


def _score(difference: float, num_first: int, num_second: int, num_images: int) -> float:
    """Return Tango's statistic, the difference of the counts over its deviation if this were the difference."""
    distance = num_first - num_second - num_images * difference
    # The likeliest share of images that only the second is right on, of those with this difference.
    a = 2 * num_images
    b = (2 * num_images - num_first + num_second) * difference - num_first - num_second
    c = -num_second * difference * (1 - difference)
    second = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = num_images * (2 * second + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
