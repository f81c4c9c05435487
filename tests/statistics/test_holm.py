"""Holm's correction against a published example, its definition, and the error that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapdist.statistics.holm import holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_a_published_example() -> None:
    """Four hypotheses of https://en.wikipedia.org/wiki/Holm-Bonferroni_method: two are rejected at 5%."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def rejected(p_values: list[float], alpha: float) -> set[int]:
    """Step down as Holm 1979 has it: from the smallest on, until one is above alpha / (hypotheses left)."""
    found: set[int] = set()
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - place) > alpha:
            break
        found.add(int(index))
    return found


@given(P_VALUES, st.floats(0.001, 0.999))
def test_what_is_at_most_alpha_is_what_stepping_down_rejects(p_values: list[float], alpha: float) -> None:
    corrected = holm(p_values)
    assert {index for index, value in enumerate(corrected) if value <= alpha} == rejected(p_values, alpha)


@given(P_VALUES)
def test_between_the_p_values_and_bonferroni_s(p_values: list[float]) -> None:
    for corrected, value in zip(holm(p_values), p_values, strict=True):
        assert value <= corrected <= min(1, len(p_values) * value)


def test_a_family_of_none_and_what_is_no_probability() -> None:
    assert holm([]) == ()
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([float("nan")])


def test_the_chance_of_any_false_rejection_is_what_it_says() -> None:
    families = np.random.default_rng(0).random((4000, 10))
    share = np.mean([min(holm(family)) <= 0.05 for family in families])
    assert share == pytest.approx(0.05, abs=0.011)  # three standard errors
