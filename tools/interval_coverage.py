"""Do the intervals of kapdist/statistics cover, and do its tests reject no more often than they say?

    python tools/interval_coverage.py [--studies 2000]

Simulates studies of which the truth is known: images differ in how hard they are, seeds in how good they are, and
both in each other's company. Prints how often the 95% intervals hold the true difference, and how often "no
difference" is rejected at 5% where there is none.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from kapdist.statistics.intervals import wilson
from kapdist.statistics.seeds import seed_difference

SEEDS = (1, 3, 5, 10)
IMAGES = 512
# How good seeds are, as deviations on the scale of a probit, on which images deviate by 1.
WORLDS = {"seeds alike": 0.0, "seeds differ": 0.1, "seeds differ much": 0.4}
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


def share(hits: list[bool]) -> str:
    found = wilson(sum(hits), len(hits))
    return f"{found.value:6.1%} ({found.low:.1%} to {found.high:.1%})"


def report(num_studies: int, say: Callable[[str], None] = print) -> None:
    random = np.random.default_rng(0)
    say(f"{num_studies} simulated studies a line; 95% intervals should cover 93 to 97%, tests reject at most 5%")
    for world in WORLDS:
        for num_seeds in SEEDS:
            lines(random, num_studies, world, num_seeds, say)


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
        null = seed_difference(*study(random, num_seeds, IMAGES, 0.0, deviation))
        rejected.append(null.decides.p < 0.05)
    say(f"{world}, {num_seeds} seeds, {IMAGES} images: rejects without a difference {share(rejected)}")
    for method, hits in covered.items():
        say(f"    {method:48} covers {share(hits)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    report(parser.parse_args().studies)


if __name__ == "__main__":
    main()
