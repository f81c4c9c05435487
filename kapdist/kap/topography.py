"""Topography: whether neighbouring kernels have become alike, as KAP makes them."""

import torch
from torch import Tensor

from kapdist.kap.average import check_window


def kernel_similarity(weight: Tensor, *, layout: str = "sheet") -> tuple[float, float]:
    """Mean cosine similarity of neighbouring kernels, and of all the other pairs.

    Neighbours are adjacent on the line or share a side on the sheet. Without topography both are about equal.

    Shapes: weight is (kernels, ...), the stored W or the averaged A W; the latter shares kernels by design.
    Raises: ValueError for an unknown layout and where all kernels are neighbours (fewer than 3).
    """
    if weight.shape[0] < 3:
        raise ValueError(f"expected at least 3 kernels to tell neighbours from the others, found {weight.shape[0]}")
    kernels = torch.nn.functional.normalize(weight.detach().flatten(1).double(), dim=1)
    cosine = kernels @ kernels.T
    distance = _grid_distance(check_window(weight.shape[0], 1, 1, layout)).to(cosine.device)
    return float(cosine[distance == 1].mean()), float(cosine[distance > 1].mean())


def _grid_distance(grid: tuple[int, ...]) -> Tensor:
    """Steps along the grid between each pair of kernels, as (C, C)."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, len(grid))
    return (places[:, None] - places[None]).abs().sum(dim=-1)
