"""Bounds on a chance from how often it came: exact ones, and ones that hold at every look of a schedule."""

from __future__ import annotations

import math
from functools import lru_cache

from kapdist.statistics.student import incomplete_beta, root

FIRST_LOOK = 100  # draws; before them no bound says much


@lru_cache(maxsize=65536)
def lower_bound(count: int, total: int, alpha: float) -> float:
    """Return what a chance exceeds with confidence 1 - alpha, one-sided, when it came `count` times of `total`.

    It is the chance under which as many or more come with probability alpha: the alpha quantile of
    Beta(count, total - count + 1).

    Raises:
        ValueError: counts that no draws have, or an alpha outside of (0, 1).

    Source: Clopper & Pearson 1934, Biometrika 26:404.
    """
    if not 0 <= count <= total or total < 1 or not 0 < alpha < 1:
        raise ValueError(f"0 to {total} of at least 1 draw and alpha in (0, 1), found {count} and {alpha:g}")
    if count == 0:
        return 0.0
    if count == total:
        return math.exp(math.log(alpha) / total)
    failures = total - count
    return root(lambda chance: incomplete_beta(chance, count, failures + 1) - alpha, 0.0, count / total)


def upper_bound(count: int, total: int, alpha: float) -> float:
    """Return what a chance stays below with confidence 1 - alpha, one-sided (Clopper & Pearson 1934)."""
    return 1 - lower_bound(total - count, total, alpha)


def least_draws(alpha: float) -> int:
    """Return how many draws, all of them alike, put the lower bound above one half."""
    draws = max(1, math.floor(-math.log2(alpha)))
    while math.exp(math.log(alpha) / draws) <= 0.5:
        draws += 1
    return draws


def looks(draws: int) -> tuple[int, ...]:
    """Return after how many draws to look at the count, ascending: all of them, a half, a quarter, to a hundred.

    Bounds at alpha / len(looks) hold at all looks together with confidence 1 - alpha, whichever one ends the
    drawing and why (Bonferroni): alpha is spent in equal parts on a schedule that is fixed before the first draw.
    """
    schedule = [draws]
    while schedule[0] // 2 >= FIRST_LOOK:
        schedule.insert(0, schedule[0] // 2)
    return tuple(schedule)
