"""What a comparison can detect: the smallest difference it would show, and how much more it would take."""

from __future__ import annotations

import math
from bisect import bisect_left
from statistics import NormalDist

from kapdist.statistics.intervals import Z_95
from kapdist.statistics.seeds import Variances
from kapdist.statistics.student import quantile, root, student_of_normal

POWER = 0.8  # share of studies that would show a difference of the smallest detectable size
Z_POWER = 0.8416212335729143  # 80th percentile of the normal distribution
MOST_SEEDS = 1000


def detectable_by_images(num_images: int, discordant: float) -> float:
    """Return the smallest difference of two models that McNemar's test shows on so many images.

    Args:
        discordant: share of images on which one of the two models alone is right.

    Source: Connor 1987, Biometrics 43:207, solved for the difference; at most `discordant`, which no difference
    exceeds: a test that shows not even that would need more images.
    """

    def lacking(difference: float) -> float:
        spread = Z_95 * math.sqrt(discordant) + Z_POWER * math.sqrt(max(0.0, discordant - difference**2))
        return difference - spread / math.sqrt(num_images)

    return discordant if lacking(discordant) < 0 else root(lacking, 0.0, discordant)


def images_needed(difference: float, discordant: float) -> int:
    """Return how many images McNemar's test needs to show a difference (Connor 1987).

    Raises:
        ValueError: no difference, or one that so few discordant images cannot make.
    """
    size = abs(difference)
    if not 0 < size <= discordant <= 1:
        raise ValueError(f"a difference above 0 and at most {discordant:g}, found {difference:g}")
    spread = Z_95 * math.sqrt(discordant) + Z_POWER * math.sqrt(discordant - size**2)
    return math.ceil((spread / size) ** 2)


def parts_with(found: Variances, num_seeds: int, num_images: int) -> tuple[float, float, float]:
    """Return the parts of the variance that the mean difference would have with other numbers of seeds and images.

    Of the seeds, of the images, and of both together.
    """
    seeds = max(0.0, found.seeds - found.rest / found.num_images)
    images = max(0.0, found.images - found.rest / found.num_seeds)
    return seeds / num_seeds, images / num_images, found.rest / (num_seeds * num_images)


def detectable_by_seeds(found: Variances, num_seeds: int, num_images: int, level: float = 0.05) -> float:
    """Return the smallest difference that the test over seeds and images (`seeds.crossed_interval`) mostly shows.

    Each part of the variance has its own quantile, as there: with the seeds' for both a study of three seeds would
    be said to show nothing below nearly twice what it does, where images vary by more.

    Args:
        level: of the test; 0.05 divided by the number of tests, where one is corrected for others.

    Raises:
        ValueError: fewer than two seeds or images, with which nothing is known of them.
    """
    if min(num_seeds, num_images) < 2:
        raise ValueError(f"at least 2 seeds and 2 images, found {num_seeds} and {num_images}")
    seeds, images, both = parts_with(found, num_seeds, num_images)

    def reach(probability: float) -> tuple[float, float]:
        """Return how far the difference reaches, over both and over the images alone."""
        few = quantile(probability, num_seeds - 1)
        many = student_of_normal(NormalDist().inv_cdf(probability), num_images - 1)
        return math.hypot(few * math.sqrt(seeds + both), many * math.sqrt(images)), many * math.sqrt(images + both)

    return max(reach(1 - level / 2)) + reach(POWER)[0]


def seeds_needed(found: Variances, difference: float, num_images: int, level: float = 0.05) -> int | None:
    """Return how many seeds would show a difference on so many images; None where the images are too few for it."""
    numbers = range(2, MOST_SEEDS + 1)
    shows = lambda n: detectable_by_seeds(found, n, num_images, level) <= abs(difference)  # noqa: E731
    place = bisect_left(numbers, True, key=shows)
    return numbers[place] if place < len(numbers) else None
