"""Exact bounds against SciPy and closed forms; that they hold as often as they say, by counting all outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kapdist.statistics.binomial import FIRST_LOOK, least_draws, looks, lower_bound, upper_bound
from kapdist.statistics.smoothing import certified_radius, chance_for, largest_radius

COUNTS = st.integers(1, 100_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(COUNTS, st.sampled_from([0.05, 0.001, 1e-4, 0.3]))
def test_the_bounds_are_scipys(counts: tuple[int, int], alpha: float) -> None:
    count, total = counts
    low = stats.beta.ppf(alpha, count, total - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - alpha, count + 1, total - count) if count < total else 1.0
    assert lower_bound(count, total, alpha) == pytest.approx(low, abs=1e-10)
    assert upper_bound(count, total, alpha) == pytest.approx(high, abs=1e-10)


def test_all_or_none() -> None:
    assert lower_bound(0, 10, 0.001) == 0
    assert upper_bound(10, 10, 0.001) == 1
    assert lower_bound(10, 10, 0.001) == pytest.approx(0.001**0.1)
    for count, total, alpha in ((11, 10, 0.1), (-1, 10, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="alpha in"):
            lower_bound(count, total, alpha)


@pytest.mark.parametrize("chance", [0.02, 0.5, 0.777, 0.99, 0.9999])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_a_bound_is_wrong_as_seldom_as_it_says(chance: float, alpha: float) -> None:
    """Over all outcomes of 200 draws, each with its own probability."""
    total = 200
    wrong = [lower_bound(count, total, alpha) > chance for count in range(total + 1)]
    assert stats.binom.pmf(np.arange(total + 1), total, chance)[wrong].sum() <= alpha


@pytest.mark.parametrize(("alpha", "expected"), [(0.001, 10), (0.05, 5), (0.5, 2), (0.4, 2), (2**-10, 11)])
def test_so_many_draws_are_needed_for_any_radius(alpha: float, expected: int) -> None:
    assert least_draws(alpha) == expected
    assert lower_bound(expected, expected, alpha) > 0.5
    assert expected == 1 or lower_bound(expected - 1, expected - 1, alpha) <= 0.5


def test_looks_double_and_end_with_all_draws() -> None:
    assert looks(10_000) == (156, 312, 625, 1250, 2500, 5000, 10_000)
    assert looks(FIRST_LOOK) == (FIRST_LOOK,)
    assert looks(7) == (7,)


@pytest.mark.parametrize("chance", [0.5, 0.97])
def test_bounds_at_every_look_hold_together_whatever_ends_the_drawing(chance: float) -> None:
    """The worst rule of all, which stops at the look with the highest bound, is wrong in at most alpha of cases.

    With alpha = 0.2 the same bounds without its parts would fail far more often, which the last line asks for.
    """
    alpha, rounds = 0.2, 1500
    schedule = looks(800)
    random = np.random.Generator(np.random.Philox(7))
    steps = np.diff((0, *schedule))
    counts = random.binomial(steps, chance, size=(rounds, len(steps))).cumsum(1)

    def failures(level: float) -> float:
        bounds = [[lower_bound(int(c), n, level) for c, n in zip(row, schedule, strict=True)] for row in counts]
        return float((np.max(bounds, axis=1) > chance).mean())

    spread = 3 * math.sqrt(alpha * (1 - alpha) / rounds)
    assert failures(alpha / len(schedule)) <= alpha + spread
    assert failures(alpha) > alpha + spread


def test_radii_are_those_of_the_theorem() -> None:
    assert certified_radius(stats.norm.cdf(1.7), 0.5) == pytest.approx(0.85)
    assert certified_radius(0.5, 0.5) == certified_radius(0.2, 0.5) == 0
    assert chance_for(0.85, 0.5) == pytest.approx(stats.norm.cdf(1.7))
    # Cohen et al. 2019, figure 1: with n = 100,000 and alpha = 0.001 no radius exceeds about 4 sigma.
    assert largest_radius(100_000, 0.001, 1.0) == pytest.approx(stats.norm.ppf(0.001 ** (1 / 100_000)), abs=1e-9)
    assert 3.7 < largest_radius(100_000, 0.001, 1.0) < 4
