"""The paired difference against published examples, SciPy, and itself turned round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kapdist.statistics.paired import compare, mcnemar, paired_difference, score_interval

counts = st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)).filter(lambda c: sum(c) > 0)


def test_a_published_example() -> None:
    # Cavo et al. 2012, complete response before and after therapy, as in Fagerland, Lydersen & Laake 2017,
    # "Statistical Analysis of Contingency Tables", chapter 8: 59, 6, 16 and 80 patients.
    found = paired_difference(6, 16, 59 + 6 + 16 + 80)
    assert found.value == pytest.approx(-0.0621, abs=5e-5)
    assert (found.low, found.high) == (pytest.approx(-0.1240, abs=5e-5), pytest.approx(-0.0054, abs=5e-5))
    assert found.p == pytest.approx(0.052479, abs=5e-7)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_p_value_is_the_binomial_tests(num_first: int, num_second: int) -> None:
    if num_first + num_second:
        expected = stats.binomtest(num_first, num_first + num_second, 0.5).pvalue
        assert mcnemar(num_first, num_second) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_large_counts_do_not_overflow() -> None:
    expected = stats.binomtest(24_000, 49_000, 0.5).pvalue
    assert mcnemar(24_000, 25_000) == pytest.approx(expected, rel=1e-7)
    assert mcnemar(0, 50_000) == 0.0


@given(counts)
def test_the_interval_holds_the_difference_and_turns_with_it(found: tuple[int, int, int]) -> None:
    num_first, num_second, _ = found
    total = sum(found)
    low, high = score_interval(num_first, num_second, total)
    assert -1 <= low <= (num_first - num_second) / total <= high <= 1
    turned = score_interval(num_second, num_first, total)
    assert (-turned[1], -turned[0]) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_interval_inverts_the_score_test(num_first: int, num_second: int, alike: int) -> None:
    """The likelihood is maximised by brute force here, by a closed form there."""
    total = num_first + num_second + alike
    if total == 0:
        return
    low, high = score_interval(num_first, num_second, total)
    for bound in (low, high):
        if abs(bound) < 1:
            assert abs(score(bound, num_first, num_second, total)) == pytest.approx(1.959964, abs=0.02)


def score(difference: float, num_first: int, num_second: int, total: int) -> float:
    second = np.linspace(max(0.0, -difference), (1 - difference) / 2, 20_001)
    first, alike = second + difference, 1 - 2 * second - difference
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = sum(
            np.where(count > 0, count * np.log(np.maximum(share, 0)), 0.0)
            for count, share in ((num_first, first), (num_second, second), (total - num_first - num_second, alike))
        )
    best = second[np.nanargmax(log_likelihood)]
    return (num_first - num_second - total * difference) / np.sqrt(total * (2 * best + difference - difference**2))


def test_the_smallest_and_largest_tables() -> None:
    assert score_interval(0, 0, 100) == (pytest.approx(-0.036994, abs=1e-6), pytest.approx(0.036994, abs=1e-6))
    assert score_interval(100, 0, 100)[1] == 1.0
    assert score_interval(0, 100, 100)[0] == -1.0
    assert paired_difference(0, 0, 5).p == 1.0


def test_images_are_compared_one_by_one() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(500) < 0.6, random.random(500) < 0.5
    found = compare(first, second)
    assert found.num_images == 500
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert compare(second, first).p == found.p


@pytest.mark.parametrize("wrong", [(1, 1, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="images"):
        paired_difference(*wrong)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare(np.ones(3), np.ones(4))
