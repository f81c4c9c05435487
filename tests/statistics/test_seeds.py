"""Differences over seeds and images: closed forms, SciPy, and simulated studies of which the truth is known."""

import numpy as np
import pytest
from scipy import stats

from kapdist.statistics.intervals import wilson
from kapdist.statistics.paired import compare
from kapdist.statistics.seeds import (
    accuracy_interval,
    bootstrap_interval,
    crossed_interval,
    seed_difference,
    t_interval,
    variances,
)


def table(seeds: int, images: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(seeds, 1)) + random.normal(size=images) + random.normal(size=(seeds, images))


def test_the_t_interval_is_scipys() -> None:
    values = np.array([0.1, 0.4, 0.25, 0.31])
    found = t_interval(values)
    expected = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)


def test_mean_squares_are_those_of_two_way_analysis_of_variance() -> None:
    values = table(4, 30)
    found = variances(values)
    grand, seeds, images = values.mean(), values.mean(1), values.mean(0)
    total = ((values - grand) ** 2).sum()
    of_seeds, of_images = 30 * ((seeds - grand) ** 2).sum(), 4 * ((images - grand) ** 2).sum()
    assert found.rest == pytest.approx((total - of_seeds - of_images) / (3 * 29))
    assert 30 * found.seeds == pytest.approx(of_seeds / 3)
    assert 4 * found.images == pytest.approx(of_images / 29)


def test_the_variance_of_the_mean_is_unbiased() -> None:
    random = np.random.default_rng(1)
    found, means = [], []
    for _ in range(2000):
        seeds, images = random.normal(0, 0.2, (5, 1)), random.normal(0, 1.0, 40)
        values = seeds + images + random.normal(0, 0.5, (5, 40))
        found.append(sum(variances(values).of_the_mean))
        means.append(values.mean())
    expected = 0.2**2 / 5 + 1 / 40 + 0.25 / 200
    assert np.var(means) == pytest.approx(expected, rel=0.1)
    assert np.mean(found) == pytest.approx(expected, rel=0.05)


def test_seeds_that_agree_leave_the_images_chance_and_the_other_way_round() -> None:
    random = np.random.default_rng(2)
    row = random.integers(-1, 2, 200)
    alike = np.repeat(row[None], 3, 0)
    seen = crossed_interval(alike)
    assert (seen.high - seen.low) / 2 >= stats.t.ppf(0.975, 199) * np.sqrt(np.var(row, ddof=1) / 200)
    assert t_interval(alike.mean(1)).low == t_interval(alike.mean(1)).high  # blind to the images
    column = np.repeat(np.array([[0.0], [1.0], [0.5]]), 200, 1)
    assert variances(column).of_the_mean == pytest.approx((np.var([0, 1, 0.5], ddof=1) / 3, 0))


def test_one_seed_is_the_paired_test_and_says_so() -> None:
    random = np.random.default_rng(3)
    first, second = random.random((1, 300)) < 0.5, random.random((1, 300)) < 0.4
    found, expected = seed_difference(first, second), compare(first[0], second[0])
    assert (found.decides.low, found.decides.high, found.decides.p) == (expected.low, expected.high, expected.p)
    assert "one seed alone" in found.decides.method
    assert found.over_seeds is None
    assert found.bootstrap is None


def test_the_bootstrap_is_that_of_resampled_tables() -> None:
    random = np.random.default_rng(4)
    values = random.integers(-1, 2, (4, 60))
    means = [values[random.integers(0, 4, 4)][:, random.integers(0, 60, 60)].mean() for _ in range(5000)]
    found = bootstrap_interval(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert bootstrap_interval(values) == found  # of one seed


def test_where_no_chance_was_seen_the_images_bound_it_as_for_one_seed() -> None:
    """All right or all wrong on 256 images: Wilson's bounds and Tango's, not a width of 0."""
    none, all_ = np.zeros((3, 256), bool), np.ones((3, 256), bool)
    for right, count in ((none, 0), (all_, 256)):
        found, expected = accuracy_interval(right), wilson(count, 256)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    found, tango = seed_difference(all_, all_).decides, compare(all_[0], all_[0])
    assert (found.low, found.high) == pytest.approx((tango.low, tango.high), rel=1e-6)
    assert found.p == 1.0
    assert seed_difference(all_, none).decides.p < 1e-5
    of_ten = seed_difference(
        none[:, :10], none[:, :10], margin=-0.01
    ).decides  # "at most 1 point lost", of ten images
    assert of_ten.p > 0.9


def test_seeds_that_agree_by_chance_leave_the_chance_of_the_images() -> None:
    """Each of two seeds gains 40 images and loses 34, none of them the other seed's: far from a difference."""
    first, second = np.zeros((2, 512), bool), np.zeros((2, 512), bool)
    for seed in range(2):
        first[seed, 100 * seed :][:40] = True
        second[seed, 100 * seed + 40 :][:34] = True
    found = seed_difference(first, second)
    assert found.per_seed == (6 / 512, 6 / 512)
    images = first.astype(int) - second
    alone = stats.ttest_1samp(images.mean(0), 0)
    assert found.decides.p == pytest.approx(alone.pvalue, rel=1e-6)
    assert found.decides.p > 0.3


def test_seeds_that_are_equal_to_the_image_are_not_known_to_be_alike() -> None:
    """Two that happen to gain as much as each other show nothing at the level of one test of fifty."""
    first, second = np.zeros((2, 256), bool), np.zeros((2, 256), bool)
    first[:, :40] = True  # the same 40 images: Tango's interval of one seed is far from 0
    found = seed_difference(first, second).decides
    assert found.p < 0.05
    assert found.p > 0.001


@pytest.mark.parametrize("shape", [(2, 5), (5,), (0, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seeds x images"):
        seed_difference(np.ones((3, 5), bool) if shape == (2, 5) else np.ones(shape, bool), np.ones(shape, bool))


@pytest.mark.parametrize(("num_seeds", "deviation"), [(3, 0.1), (10, 0.1)])
def test_intervals_cover_and_tests_keep_their_level(num_seeds: int, deviation: float) -> None:
    """tools/interval_coverage.py with more studies; here, some deviations of the simulation around 95%."""
    from tools.interval_coverage import study, truth

    random = np.random.default_rng(5)
    num_studies, covered, rejected = 400, 0, 0
    for _ in range(num_studies):
        first, second = study(random, num_seeds, 200, 0.2, deviation)
        found = crossed_interval(first.astype(int) - second)
        covered += found.low <= truth(0.2, deviation) <= found.high
        first, second = study(random, num_seeds, 200, 0.0, deviation)
        rejected += crossed_interval(first.astype(int) - second).p < 0.05
    assert 0.92 < covered / num_studies < 0.99
    assert rejected / num_studies < 0.08


@pytest.mark.parametrize(("num_seeds", "most"), [(2, 28), (3, 28)])
def test_few_seeds_keep_the_levels_that_holm_asks_for(num_seeds: int, most: int) -> None:
    """Of 1,500 studies without a difference, at 1%: more than 28 come once in 1,000 times. One t for seeds and
    images together, its degrees of freedom estimated, rejected 107 with two seeds and 41 with three.
    """
    from tools.interval_coverage import study

    random, rejected = np.random.default_rng(6), 0
    for _ in range(1500):
        first, second = study(random, num_seeds, 256, 0.0, 0.2)
        rejected += crossed_interval(first.astype(int) - second).p < 0.01
    assert rejected <= most
