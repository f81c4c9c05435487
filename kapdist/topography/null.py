"""The null hypothesis that places mean nothing: kernels permuted over the sheet, and averaged afterwards.

What an average makes of unrelated kernels is alike where it shares some, so the averaged quantities are compared
with averages of permuted kernels. What is to be found out is whether the kernels below the average became alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kapdist.records.topography import Curve, Measure
from kapdist.rng import generator
from kapdist.topography.places import Average, Pairs
from kapdist.topography.similarity import (
    averaged,
    averaged_squares,
    effective_number,
    inverse_norms,
    means_of_rows,
    similarities,
)

BAND = 199  # permutations of the curves' bands, and of what is averaged
AT_ONCE = 256
TIES = 1e-7  # of similarities in single precision


def orders_of(kernels: int, groups: int, count: int, seed: int, layer: str) -> Tensor:
    """Return permutations of a layer's kernels, (count, kernels) int64, the same for every run and quantity.

    What initialisation makes exchangeable is permuted: groups as wholes, and the kernels in each of them. The
    first ones are the same whatever the count.
    """
    random = generator(seed, "permutations", layer, kernels, groups)
    each = kernels // groups
    parts = []
    for start in range(0, count, AT_ONCE):
        outer = random.permuted(np.tile(np.arange(groups), (AT_ONCE, 1)), axis=1)
        inner = random.permuted(np.tile(np.arange(each), (AT_ONCE, groups, 1)), axis=2)
        parts.append((each * outer[:, :, None] + inner).reshape(AT_ONCE, kernels)[: count - start])
    return torch.from_numpy(np.concatenate(parts))


@dataclass(frozen=True)
class Sampled:
    """Similarities of the pairs that are counted."""

    neighbours: float
    others: float
    curve: np.ndarray
    effective: float


def measure(gram: Tensor, pairs: Pairs, orders: Tensor, average: Average, is_average: bool = False) -> Measure:
    """Return how alike kernels are by distance, against the null.

    The statistic is the mean similarity of neighbours less that of all other pairs; p = (1 + number of
    permutations with at least as much) / (1 + number of permutations).

    Args:
        gram: (kernels, kernels), before the average.
        orders: (permutations, kernels).
        average: A; the identity where nothing is averaged.
        is_average: whether A is more than the identity; then the effective number of kernels depends on their
            order, and the test makes do with the band's permutations.
    """
    matrix = gram.float()
    found = sampled(matrix, torch.arange(len(gram)), pairs, average)
    band = [sampled(matrix, order, pairs, average) for order in orders[:BAND]]
    null = np.array([one.neighbours - one.others for one in band])
    p = p_of(found.neighbours - found.others, null) if is_average else contrast_and_p(gram, pairs, orders)[1]
    low, high = np.quantile([one.curve for one in band], [0.025, 0.975], axis=0)
    size = size_of(found.curve, high, pairs)
    whole = similarities(averaged(gram, average)) if is_average else similarities(gram)
    return Measure(
        neighbours=found.neighbours,
        others=found.others,
        p=p,
        permutations=len(null if is_average else orders),
        effective=effective_number(whole),
        effective_null=effective_band(band) if is_average else None,
        size=size,
        members=None if size is None else pairs.members(size),
        curve=Curve(
            distance=pairs.distance,
            similarity=tuple(found.curve.tolist()),
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            pairs=pairs.counts,
        ),
    )


def contrast_and_p(gram: Tensor, pairs: Pairs, orders: Tensor) -> tuple[float, float]:
    """Return the statistic and its p-value where nothing is averaged, neither curve nor band."""
    kept = torch.arange(len(gram))[None]
    found, *null = contrasts_of(similarities(gram.float()), torch.cat([kept, orders]), pairs).tolist()
    return found, p_of(found, np.array(null))


def p_of(found: float, null: np.ndarray) -> float:
    return (1 + int((null >= found - TIES).sum())) / (1 + len(null))


def effective_band(band: list[Sampled]) -> tuple[float, float]:
    low, high = np.quantile([one.effective for one in band], [0.025, 0.975])
    return float(low), float(high)


def size_of(curve: np.ndarray, high: np.ndarray, pairs: Pairs) -> float | None:
    """Return the first distance at which the similarity is no longer above the null's band."""
    within = np.flatnonzero(curve <= high)
    return pairs.distance[within[0]] if len(within) else None


def sampled(matrix: Tensor, order: Tensor, pairs: Pairs, average: Average) -> Sampled:
    """Return the similarities of the counted pairs with kernel order[i] in place i, then averaged.

    Of A P G P^T A^T the rows that are counted alone are made: sums of rows of G, then of their columns.
    """
    columns, some = order[average.columns], average.of(pairs.rows)
    half = means_of_rows(matrix, order[some.columns], some.weights)
    found = means_of_rows(half.T.contiguous(), columns, average.weights)
    scale = inverse_norms(averaged_squares(matrix, columns, average.weights))
    return by_distance(found * scale[:, None] * scale[pairs.rows], pairs)


def by_distance(found: Tensor, pairs: Pairs) -> Sampled:
    """Return the means of similarities, (kernels after, rows)."""
    num_bins, counts = len(pairs.counts), np.array(pairs.counts)
    sums = np.bincount(pairs.bins.numpy().ravel(), weights=found.numpy().ravel(), minlength=num_bins + 1)[:num_bins]
    near = float(found[pairs.near[:, 0], pairs.near[:, 1]].sum(dtype=torch.double))
    # Of the rows that are counted, as if they stood for all.
    squares = float(found.square().sum(dtype=torch.double)) * len(found) / found.shape[1]
    return Sampled(
        neighbours=near / len(pairs.near),
        others=(float(sums.sum()) - near) / pairs.num_others,
        curve=sums / counts,
        effective=len(found) ** 2 / squares if squares else 0.0,
    )


def contrasts_of(similarity: Tensor, orders: Tensor, pairs: Pairs) -> np.ndarray:
    """Return the statistic for each order, (orders,), where nothing is averaged: neighbours alone are looked up."""
    places = pairs.near[:, 0], pairs.rows[pairs.near[:, 1]]
    of_row = similarity.sum(1, dtype=torch.double) - similarity.diagonal()
    contrasts = []
    for some in orders.split(AT_ONCE):
        first, second = some[:, places[0]], some[:, places[1]]
        near = similarity.take(first * len(similarity) + second).sum(1, dtype=torch.double)
        total = of_row[some[:, pairs.rows]].sum(1)
        contrasts.append(near / len(pairs.near) - (total - near) / pairs.num_others)
    return torch.cat(contrasts).numpy()
