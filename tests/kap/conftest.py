"""The independent answer that the mean filter is compared with: the C' x C matrix A, entry by entry."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from one_thread import one_thread  # noqa: F401
from torch import Tensor

GRIDS = {8: (2, 4), 12: (3, 4), 24: (4, 6), 49: (7, 7), 56: (7, 8)}  # written down, not computed


def dense_average(channels: int, kernel_size: int, stride: int, layout: str) -> Tensor:
    """A as float64: row k is the mean over the kernels at most half a window away from the k-th centre."""
    grid = (channels,) if layout == "line" else GRIDS[channels]
    places = list(product(*(range(side) for side in grid)))
    centres = [place for place in places if all(x % stride == 0 for x in place)]
    half = kernel_size // 2
    matrix = torch.zeros(len(centres), channels, dtype=torch.double)
    for row, centre in enumerate(centres):
        near = [i for i, p in enumerate(places) if all(abs(a - b) <= half for a, b in zip(p, centre, strict=True))]
        matrix[row, near] = 1 / len(near)
    return matrix


@pytest.fixture(name="dense_average", scope="session")
def dense_average_fixture() -> Callable[[int, int, int, str], Tensor]:
    return dense_average
