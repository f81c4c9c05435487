"""The smallest detectable difference against a published example and simulation."""

import math

import numpy as np
import pytest

from kapdist.statistics.paired import mcnemar
from kapdist.statistics.power import (
    detectable_by_images,
    detectable_by_seeds,
    images_needed,
    parts_with,
    seeds_needed,
)
from kapdist.statistics.seeds import Variances, crossed_interval, t_interval, variances


def test_images_and_differences_are_each_others_inverse() -> None:
    for difference, discordant in ((0.02, 0.1), (0.05, 0.2), (0.1, 0.1)):
        needed = images_needed(difference, discordant)
        assert detectable_by_images(needed, discordant) <= difference + 1e-12
        assert detectable_by_images(needed - 1, discordant) > difference or discordant == difference


def test_eight_of_ten_studies_of_that_size_show_it() -> None:
    random = np.random.default_rng(0)
    num_images, discordant = 2000, 0.2
    difference = detectable_by_images(num_images, discordant)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    drawn = random.multinomial(num_images, shares, size=2000)
    shown = np.mean([mcnemar(int(first), int(second)) < 0.05 for first, second, _ in drawn])
    assert 0.75 < shown < 0.84


def test_so_do_eight_of_ten_studies_over_seeds() -> None:
    random = np.random.default_rng(1)
    parts = Variances(seeds=0.01**2, images=0.0, rest=0.0, num_seeds=5, num_images=10**9)
    difference = detectable_by_seeds(parts, 5, 10**9)
    shown = np.mean([t_interval(random.normal(difference, 0.01, 5)).p < 0.05 for _ in range(3000)])
    assert 0.75 < shown < 0.87


@pytest.mark.parametrize("seeds", [3, 5])
def test_and_where_the_images_vary_by_more(seeds: int) -> None:
    """By the seeds' quantile for both parts, nearly all did: 11 points where 7 do."""
    random, images, of_seeds, of_images, of_both = np.random.default_rng(seeds), 256, 0.005, 0.3, 0.2
    parts = Variances(
        of_seeds**2 + of_both**2 / images, of_images**2 + of_both**2 / seeds, of_both**2, seeds, images
    )
    difference = detectable_by_seeds(parts, seeds, images)

    def drawn() -> np.ndarray:
        table = random.normal(difference, of_seeds, (seeds, 1)) + random.normal(0, of_images, images)
        return table + random.normal(0, of_both, (seeds, images))

    shown = np.mean([crossed_interval(drawn()).p < 0.05 for _ in range(1500)])
    assert 0.76 < shown < 0.85


def test_the_variance_with_other_numbers_is_the_one_that_they_have() -> None:
    random = np.random.default_rng(2)

    def drawn(seeds: int, images: int) -> np.ndarray:
        table = random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 1, images)
        return table + random.normal(0, 0.5, (seeds, images))

    foretold = np.mean([sum(parts_with(variances(drawn(4, 50)), 12, 200)) for _ in range(500)])
    assert foretold == pytest.approx(np.var([drawn(12, 200).mean() for _ in range(2000)]), rel=0.15)


def test_more_seeds_detect_less_until_the_images_are_too_few() -> None:
    parts = Variances(seeds=0.02**2, images=0.25, rest=0.1, num_seeds=5, num_images=1000)
    sizes = [detectable_by_seeds(parts, seeds, 1000) for seeds in range(2, 12)]
    assert sizes == sorted(sizes, reverse=True)
    needed = seeds_needed(parts, 0.06, 1000)
    assert needed is not None
    assert detectable_by_seeds(parts, needed, 1000) <= 0.06 < detectable_by_seeds(parts, needed - 1, 1000)
    assert seeds_needed(parts, 0.01, 1000) is None
    assert math.isfinite(detectable_by_seeds(parts, 2, 1000))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="difference"):
        images_needed(0.3, 0.2)
    with pytest.raises(ValueError, match="2 seeds"):
        detectable_by_seeds(Variances(1, 1, 1, 3, 3), 1, 10)
