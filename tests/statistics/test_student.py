"""Student's t against printed tables, closed forms and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from kapdist.statistics.student import incomplete_beta, quantile, student_of_normal, two_sided_p

# Fisher & Yates 1963, table III: the 97.5th percentiles, to the places that are printed.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "expected"), PRINTED.items())
def test_quantiles_are_the_printed_ones(freedom: int, expected: float) -> None:
    assert quantile(0.975, freedom) == pytest.approx(expected, abs=5e-4)
    assert quantile(0.025, freedom) == pytest.approx(-quantile(0.975, freedom))


def test_one_degree_is_cauchy_and_two_have_a_closed_form() -> None:
    for t in (0.0, 0.3, 1.0, 17.0, 1e4):
        assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-15)
        assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-7, abs=1e-15)


@given(st.floats(0, 50), st.floats(0.5, 1e6))
def test_the_tail_is_scipys(t: float, freedom: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-7, abs=1e-300)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 1e6))
def test_quantiles_are_scipys(probability: float, freedom: float) -> None:
    expected = stats.t.ppf(probability, freedom)
    assert quantile(probability, freedom) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@given(st.floats(0, 1), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_the_beta_function_is_scipys(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-7, abs=1e-12)
    assert 0 <= incomplete_beta(x, a, b) <= 1 + 1e-15 or np.isnan(x)


def test_what_is_as_rare_of_a_normal_variable() -> None:
    """SciPy's, to 0.1% from ten degrees on; never too small where it counts."""
    for freedom in (1, 2, 6, 10, 255, math.inf):
        for z in (1.96, 2.58, 3.29):
            expected = z if math.isinf(freedom) else stats.t.isf(stats.norm.sf(z), freedom)
            found = student_of_normal(z, freedom)
            assert found == -student_of_normal(-z, freedom)
            assert found >= expected * (1 - 1e-9)
            if freedom >= 10:
                assert found == pytest.approx(expected, rel=4e-3)
    assert math.isfinite(student_of_normal(37.0, 1))
