"""The radius that a smoothed classifier is robust in, from the chance of its class under Gaussian noise.

Source: Cohen, Rosenfeld & Kolter 2019, https://arxiv.org/abs/1902.02918, Theorem 1 and section 3.2.2.
"""

from __future__ import annotations

from statistics import NormalDist

from kapdist.statistics.binomial import lower_bound

NORMAL = NormalDist()


def certified_radius(chance: float, sigma: float) -> float:
    """Return the L2 radius within which a class of at least this chance stays the likeliest; 0 up to one half."""
    return sigma * NORMAL.inv_cdf(chance) if chance > 0.5 else 0.0


def chance_for(radius: float, sigma: float) -> float:
    """Return the chance that a radius takes."""
    return NORMAL.cdf(radius / sigma)


def largest_radius(draws: int, alpha: float, sigma: float) -> float:
    """Return the radius of an image whose draws are all of one class: none can be larger."""
    return certified_radius(lower_bound(draws, draws, alpha), sigma)
