"""Do the intervals of kapdist/statistics cover, and do its tests reject no more often than they say?

    python tools/interval_coverage.py [--studies 2000]

Simulates studies of which the truth is known: images differ in how hard they are, seeds in how good they are, and
both in each other's company. Prints how often the 95% intervals hold the true difference, and how often "no
difference" is rejected at 5% where there is none: of two settings, of an accuracy, and of two frontiers of three
settings each, whose region and dominance are looked at too (of a fifth of as many studies, as they take longer).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from kapdist.statistics.frontier import Frontier, band, distance, dominance, frontier_difference, heights
from kapdist.statistics.intervals import wilson
from kapdist.statistics.seeds import Interval, accuracy_interval, seed_difference

SEEDS = (1, 3, 5, 10)
IMAGES = 512
# How good seeds are, as deviations on the scale of a probit, on which images deviate by 1.
WORLDS = {"seeds alike": 0.0, "seeds differ": 0.1, "seeds differ much": 0.4}
STRENGTHS = ((0.2, 0.5, 0.8), (0.1, 0.4, 0.9))  # of what moves two arms along their frontiers
LIFT = 0.3  # of what the first arm withstands
Study = tuple[np.ndarray, np.ndarray]


def study(random: np.random.Generator, num_seeds: int, num_images: int, shift: float, seeds: float) -> Study:
    """Return (seeds, images) of what withstood, of two ways to train: the second is better by `shift`."""
    images = random.normal(0, 1, num_images)
    first = images + random.normal(0, seeds, (num_seeds, 1)) + random.normal(0, 0.5, (num_seeds, num_images))
    second = images + random.normal(0, seeds, (num_seeds, 1)) + random.normal(0, 0.5, (num_seeds, num_images))
    return first > 0.3, second + shift > 0.3


def truth(shift: float, seeds: float) -> float:
    """Return the expected share of the first minus that of the second."""
    deviation = math.sqrt(1 + seeds**2 + 0.25)
    below = [0.5 * math.erfc((0.3 - of) / deviation / math.sqrt(2)) for of in (0.0, shift)]
    return below[0] - below[1]


def frontiers(
    random: np.random.Generator, num_seeds: int, num_images: int, lift: float, seeds: float
) -> tuple[Frontier, Frontier]:
    """Return two arms of three strengths on the same images; the first withstands more by `lift`."""
    images = random.normal(0, 1, num_images)
    arms = []
    for strengths, above in zip(STRENGTHS, (lift, 0.0), strict=True):
        noise = [random.normal(0, seeds, (num_seeds, 1)) for _ in strengths]
        right = [images + own + random.normal(0, 0.5, (num_seeds, num_images)) for own in noise]
        clean = [found > strength - 1.2 for found, strength in zip(right, strengths, strict=True)]
        robust = [found > 1.2 - strength - above for found, strength in zip(right, strengths, strict=True)]
        arms.append(Frontier(np.array(clean), np.array(robust)))
    return arms[0], arms[1]


def expected_frontier(strengths: tuple[float, ...], lift: float, seeds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the clean and robust accuracies that the points of an arm have on average."""
    deviation = math.sqrt(1 + seeds**2 + 0.25)
    above = [[strength - 1.2, 1.2 - strength - lift] for strength in strengths]
    found = [[0.5 * math.erfc(bound / deviation / math.sqrt(2)) for bound in bounds] for bounds in above]
    clean, robust = np.array(found).T
    return clean, robust


def share(hits: list[bool]) -> str:
    found = wilson(sum(hits), len(hits))
    return f"{found.value:6.1%} ({found.low:.1%} to {found.high:.1%})"


def report(num_studies: int, say: Callable[[str], None] = print) -> None:
    random = np.random.default_rng(0)
    say(f"{num_studies} simulated studies a line; 95% intervals should cover 93 to 97%, tests reject at most 5%")
    for world in WORLDS:
        for num_seeds in SEEDS:
            lines(random, num_studies, world, num_seeds, say)
            if num_seeds > 1:
                frontier_lines(random, max(1, num_studies // 5), world, num_seeds, say)


def lines(
    random: np.random.Generator, num_studies: int, world: str, num_seeds: int, say: Callable[[str], None]
) -> None:
    """Say of one kind of study how often each interval covers, and how often a difference is seen where none is."""
    covered: dict[str, list[bool]] = {}
    rejected: list[bool] = []
    shift, deviation = 0.2, WORLDS[world]
    expected = truth(shift, deviation)
    for _ in range(num_studies):
        found = seed_difference(*study(random, num_seeds, IMAGES, shift, deviation))
        for interval in filter(None, (found.decides, found.over_seeds, found.bootstrap)):
            covered.setdefault(interval.method, []).append(interval.low <= expected <= interval.high)
        first, _ = study(random, num_seeds, IMAGES, 0.0, deviation)
        alone = accuracy_of(first)
        right = 0.5 * math.erfc(0.3 / math.sqrt(2 * (1 + deviation**2 + 0.25)))
        covered.setdefault(f"an accuracy: {alone.method}", []).append(alone.low <= right <= alone.high)
        null = seed_difference(*study(random, num_seeds, IMAGES, 0.0, deviation))
        rejected.append(null.decides.p < 0.05)
    say(f"{world}, {num_seeds} seeds, {IMAGES} images: rejects without a difference {share(rejected)}")
    for method, hits in covered.items():
        say(f"    {method:48} covers {share(hits)}")


def accuracy_of(right: np.ndarray) -> Interval:
    """Return the interval of an accuracy as a study's table has it."""
    if len(right) > 1:
        return accuracy_interval(right)
    found = wilson(int(right.sum()), right.size)
    return Interval("Wilson over images, of one seed alone", found.low, found.high)


def frontier_lines(
    random: np.random.Generator, num_studies: int, world: str, num_seeds: int, say: Callable[[str], None]
) -> None:
    """Say the same of two frontiers: their difference, the region of one, and dominance where there is none."""
    deviation = WORLDS[world]
    arms = [expected_frontier(STRENGTHS[number], lift, deviation) for number, lift in ((0, LIFT), (1, 0.0))]
    expected = distance(*arms[0], *arms[1])
    clean, robust = expected_frontier(STRENGTHS[0], 0.0, deviation)
    at = (clean.min() + clean.max()) / 2
    height = float(heights(clean, robust, np.array([at]))[0])
    covered: list[bool] = []
    held: list[bool] = []
    rejected: list[bool] = []
    dominates: list[bool] = []
    for _ in range(num_studies):
        found = frontier_difference(*frontiers(random, num_seeds, IMAGES, LIFT, deviation))
        if found and expected:
            covered.append(found.decides.low <= expected.mean <= found.decides.high)
        first, second = frontiers(random, num_seeds, IMAGES, 0.0, deviation)
        if null := frontier_difference(first, second):
            rejected.append(null.decides.p < 0.05)
        region = band(first)
        low, high = (float(np.interp(at, region.clean, side)) for side in (region.low, region.high))
        held.append(low <= height <= high)
        dominates.append(dominance(first, second) < 0.05)
    say(f"    frontiers of {num_studies} studies: rejects without a difference {share(rejected)}")
    say(f"    {'t over seeds and images, of interpolated frontiers':48} covers {share(covered)}")
    say(f"    {'the region of a frontier, in its middle':48} covers {share(held)}")
    say(f"    {'dominance where there is none':48} shown  {share(dominates)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    report(parser.parse_args().studies)


if __name__ == "__main__":
    main()
