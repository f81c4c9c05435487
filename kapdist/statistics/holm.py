"""Holm's correction of a family of tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the p-values corrected for being a family, in their order, at most 1.

    What is at most alpha may be rejected: the chance that any true hypothesis of the family is, is at most alpha,
    however the tests depend on each other.

    Raises: ValueError for what is no probability.
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values from 0 to 1")
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1) * values[order]
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return tuple(corrected.tolist())
