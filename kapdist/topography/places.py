"""Where kernels lie: their distances, and which of their pairs are counted."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kapdist.kap.average import check_window, kernel_average
from kapdist.rng import permutation

BINS = 13
ROWS = 128  # kernels whose distances to all others are counted, of more than that a sample by seed


@dataclass(frozen=True)
class Average:
    """A as sparse rows: (kernels after, window) the kernels of each mean and their weights, 0 beyond the edges."""

    columns: Tensor
    weights: Tensor

    def of(self, rows: Tensor) -> Average:
        """Return the means of these places alone."""
        return Average(self.columns[rows], self.weights[rows])


@dataclass(frozen=True)
class Pairs:
    """Pairs of one of `rows` with each kernel but itself, by distance.

    bins: (kernels, rows) int64, the number of bins for a kernel with itself.
    distance: mean of each bin, steps of the grid; counts: its pairs.
    near: (pairs, 2), of them those that share a side: kernel, place among `rows`.
    """

    grid: tuple[int, ...]
    rows: Tensor
    bins: Tensor
    distance: tuple[float, ...]
    counts: tuple[int, ...]
    near: Tensor

    @property
    def num_others(self) -> int:
        return sum(self.counts) - len(self.near)

    def members(self, size: float) -> float:
        """Return the mean number of kernels nearer than `size`, the kernel itself among them."""
        nearer = sum(count for at, count in zip(self.distance, self.counts, strict=True) if at < size)
        return 1 + nearer / len(self.rows)


@functools.lru_cache(maxsize=64)
def average_of(channels: int, pool_size: int, stride: int, layout: str) -> Average:
    """Return the average of KAPConv2d with these settings; pool size 1 and stride 1 are the identity."""
    dense = kernel_average(torch.eye(channels, dtype=torch.double), pool_size, stride=stride, layout=layout, dim=0)
    weights, columns = dense.topk(int((dense > 0).sum(1).max()), dim=1)
    return Average(columns, weights.float())


@functools.lru_cache(maxsize=64)
def pairs_of(channels: int, stride: int, layout: str, seed: int) -> Pairs | None:
    """Return the pairs of the kernels that a pool of this stride leaves; None where all are neighbours.

    Distances are Euclidean, in steps of the grid before the pool. Where there are more than 13 of them they are
    put into 13 bins of equal ratios, empty ones left out, so that the nearest keep bins of their own.
    """
    grid = tuple(math.ceil(side / stride) for side in check_window(channels, 1, 1, layout))
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, len(grid))
    rows = torch.from_numpy(np.sort(permutation(len(places), seed, "rows", len(places))[:ROWS]))
    squares = (places[:, None] - places[rows]).square().sum(-1)
    distinct = squares.unique()
    if len(distinct) < 3:  # 0, and one distance
        return None
    bins = binned(squares, distinct[1:])
    apart = squares > 0
    counts = torch.bincount(bins[apart])
    sums = torch.bincount(bins[apart], weights=stride * squares[apart].double().sqrt())
    return Pairs(
        grid=grid,
        rows=rows,
        bins=torch.where(apart, bins, len(counts)),
        distance=tuple((sums / counts).tolist()),
        counts=tuple(counts.tolist()),
        near=(squares == 1).nonzero(),
    )


def binned(squares: Tensor, distinct: Tensor) -> Tensor:
    """Return the bin of each squared distance; of zeros any."""
    if len(distinct) <= BINS:
        return torch.searchsorted(distinct, squares)
    nearest, farthest = distinct[0].log(), distinct[-1].log()
    share = (squares.clamp(min=int(distinct[0])).log() - nearest) / (farthest - nearest)
    raw = (BINS * share).long().clamp(max=BINS - 1)
    return torch.searchsorted(raw[squares > 0].unique(), raw)
