"""How alike kernels are, from their Gram matrix: averaging kernels is averaging its rows and its columns."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kapdist.topography.places import Average

SILENT = 1e-10  # of the largest variance: what is left of nothing after rounding


def gram_of_kernels(weight: Tensor, groups: int = 1, scale: Tensor | None = None) -> Tensor:
    """Return the products of all kernels with each other, (kernels, kernels) float64.

    Kernels of different groups see different channels: their product is 0.

    Shapes: weight is (kernels, channels of a group, height, width), scale (kernels,): a norm's before the average.
    """
    kernels = weight.detach().flatten(1).double()
    if scale is not None:
        kernels = kernels * scale.double()[:, None]
    gram = kernels @ kernels.T
    if groups > 1:
        group = torch.arange(len(gram), device=gram.device) // (len(gram) // groups)
        gram = gram * (group[:, None] == group)
    return gram


def averaged(gram: Tensor, average: Average) -> Tensor:
    """Return A G A^T, (kernels after, kernels after)."""
    half = means_of_rows(gram, average.columns, average.weights)
    return means_of_rows(half.T.contiguous(), average.columns, average.weights)


def means_of_rows(matrix: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of a matrix' rows: those of columns[i] for row i."""
    weights = weights.to(matrix.dtype)
    return functional.embedding_bag(columns, matrix, mode="sum", per_sample_weights=weights)


def averaged_squares(gram: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Return the diagonal of A G A^T, (kernels after,), where A has these weights in these columns."""
    flat = columns[:, :, None] * len(gram) + columns[:, None]
    both = weights[:, :, None] * weights[:, None]
    return (gram.take(flat) * both).sum((1, 2))


def similarities(gram: Tensor) -> Tensor:
    """Return cosines, or correlations where the Gram matrix is a covariance; a silent kernel is alike to none."""
    scale = inverse_norms(gram.diagonal())
    return gram * scale[:, None] * scale


def inverse_norms(squares: Tensor) -> Tensor:
    silent = is_silent(squares)
    return torch.where(silent, 0, squares.masked_fill(silent, 1).rsqrt())


def is_silent(squares: Tensor) -> Tensor:
    return squares <= SILENT * squares.max().clamp(min=torch.finfo(squares.dtype).tiny)


def effective_number(similarity: Tensor) -> float:
    """Return the participation ratio of a similarity matrix' eigenvalues, (sum)^2 / sum of squares.

    N unrelated kernels give N, N equal ones 1. The sums are the trace and the sum of squared entries.
    Source: Gao et al. 2017, https://doi.org/10.1101/214262 (there of a covariance).
    """
    trace = similarity.diagonal().double().sum()
    squares = similarity.double().square().sum()
    return float(trace.square() / squares) if squares > 0 else 0.0
