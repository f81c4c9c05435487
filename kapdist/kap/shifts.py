"""The average on CPUs where kernels are neighbours in memory (activations in channels_last): sums of shifted rows.

torch's avg_pool2d works on such sheets entry by entry, a hundred times as slowly as a batch norm; these sums cost
about one. Rows and columns are summed apart. A shift along the flat line of kernels crosses from the end of a row
of the sheet to the start of the next: coefficients of 0 take that back, and those of the others divide by the
kernels that exist.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """For each kernel: 1 / (kernels that exist in its window), and whether a kernel `shift` columns on exists."""

    shares: Tensor
    exists: tuple[Tensor, ...]


def shifted_means(flat: Tensor, pool_size: int, sides: tuple[int, int]) -> Tensor:
    """The means over each kernel's window, in the dtype of flat, of which low precisions are summed in float32.

    Shapes: (before, height * width), kept.
    """
    at = _coefficients_for(flat, pool_size, sides)
    rows = _summed_over_rows(_wide(flat), pool_size, sides)
    means = rows * at.shares
    for shift, exists in enumerate(at.exists, start=1):
        means[:, shift:].addcmul_(rows[:, :-shift], exists * at.shares[shift:])
        means[:, :-shift].addcmul_(rows[:, shift:], exists * at.shares[:-shift])
    return means.to(flat.dtype)


def shifted_means_transposed(flat: Tensor, pool_size: int, sides: tuple[int, int]) -> Tensor:
    """The transpose of `shifted_means`."""
    at, wide = _coefficients_for(flat, pool_size, sides), _wide(flat)
    columns = wide * at.shares
    for shift, exists in enumerate(at.exists, start=1):
        columns[:, shift:].addcmul_(wide[:, :-shift], exists * at.shares[:-shift])
        columns[:, :-shift].addcmul_(wide[:, shift:], exists * at.shares[shift:])
    return _summed_over_rows(columns, pool_size, sides).to(flat.dtype)


def _wide(flat: Tensor) -> Tensor:
    return flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat


def _summed_over_rows(flat: Tensor, pool_size: int, sides: tuple[int, int]) -> Tensor:
    sums = flat.clone()
    for row in range(1, min(pool_size // 2, sides[0] - 1) + 1):
        shift = row * sides[1]
        sums[:, shift:] += flat[:, :-shift]
        sums[:, :-shift] += flat[:, shift:]
    return sums


def _coefficients_for(flat: Tensor, pool_size: int, sides: tuple[int, int]) -> Coefficients:
    # Of tensors that only stand for others (torch's fake ones) none may be kept for the next call.
    make = _coefficients if type(flat) is Tensor else _coefficients.__wrapped__
    return make(pool_size, sides, _wide(flat).dtype)


@functools.lru_cache(maxsize=256)
def _coefficients(pool_size: int, sides: tuple[int, int], dtype: torch.dtype) -> Coefficients:
    with torch.inference_mode(False), torch.no_grad():
        column = torch.arange(sides[0] * sides[1]) % sides[1]
        shifts = range(1, min(pool_size // 2, sides[1] - 1) + 1)
        exists = tuple((column[:-shift] + shift < sides[1]).to(dtype) for shift in shifts)
        return Coefficients(shares(pool_size, sides).to(dtype), exists)


def shares(pool_size: int, sides: tuple[int, int]) -> Tensor:
    """1 / (kernels that exist in its window) for each kernel of a sheet, (height * width,) in float64."""
    counts = [_count(side, pool_size // 2) for side in sides]
    return torch.outer(*counts).flatten().reciprocal()


def _count(side: int, half: int) -> Tensor:
    """How many places of a line lie at most half a window from each, itself included."""
    place = torch.arange(side)
    return (1 + place.clamp(max=half) + place.flip(0).clamp(max=half)).double()
