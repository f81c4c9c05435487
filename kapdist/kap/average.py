"""The mean filter along the kernel dimension.

Source: "Learning Robust Kernel Ensembles with Kernel Average Pooling", ICLR 2023 submission.
"""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kapdist.kap.shifts import shifted_means, shifted_means_transposed

LAYOUTS = ("sheet", "line")
_MOST_POOLED = 2**31 - 1  # entries that avg_pool2d counts on a GPU


def kernel_average(z: Tensor, pool_size: int, *, stride: int = 1, layout: str = "sheet", dim: int = 1) -> Tensor:
    """Mean of the `pool_size` neighbouring kernels of every `stride`-th kernel, along `dim`.

    With layout "sheet", the paper's authors' own, the C kernels lie row by row on the most nearly square grid
    h x w (h * w = C, h <= w), the window is pool_size x pool_size and the stride goes along both sides of the
    grid. With "line", a variant of ours, they lie in one row. At the edges the mean is over the kernels that
    exist, so a constant stays a constant (to rounding).

    Shapes: dim has C kernels before and ceil(C / stride) after, a sheet ceil(h / stride) * ceil(w / stride).
    For activations (batch, channels, height, width) dim is 1, for weights (out, in, height, width) it is 0.
    The memory format of z is kept. What is returned may be changed in place; pool_size 1 returns z itself.
    Raises: ValueError for what `check_window` refuses, a dim that z has not, and whole or complex numbers.
    Source: the paper's section on Kernel Average Pooling; no dense C x C matrix is ever built.
    """
    if not -z.dim() <= dim < z.dim():
        raise ValueError(f"dim must be one of the {z.dim()} dimensions of z, found {dim}")
    if not z.is_floating_point():
        raise ValueError(f"a mean needs real numbers, found {z.dtype}")
    dim = dim % z.dim()
    grid = check_window(z.shape[dim], pool_size, stride, layout)
    if pool_size == 1 and stride == 1:
        return z
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or z.numel() > _MOST_POOLED:
        return _written_out(z, pool_size, stride, grid, dim)
    average: Tensor = _KernelAverage.apply(z, pool_size, stride, grid, dim)
    return average


def check_window(channels: int, pool_size: int, stride: int, layout: str) -> tuple[int, ...]:
    """The grid of the kernels: (C,) for a line, (h, w) for a sheet.

    Raises: ValueError for an unknown layout, a pool_size that is no integer, even, non-positive or greater than
    the grid's shortest side, and a stride that is no integer, below 1 or beyond the grid.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
    if not _is_integer(pool_size) or pool_size < 1 or pool_size % 2 == 0:
        raise ValueError(f"pool_size must be an odd number of kernels (1, 3, 5, ...), found {pool_size!r}")
    if not _is_integer(stride):
        raise ValueError(f"the pool's stride must be an integer, found {stride!r}")
    grid: tuple[int, ...] = (channels,) if layout == "line" else sheet_grid(channels)
    side = min(grid)
    where = f"{channels} channels" if layout == "line" else f"{channels} channels on a {grid[0]} x {grid[1]} sheet"
    if pool_size > side:
        raise ValueError(f"pool_size {pool_size} does not fit {where}: expected at most {side}")
    if not 1 <= stride <= side:
        raise ValueError(f"the pool's stride {stride} leaves no channel of {where}: expected 1 to {side}")
    return grid


def _is_integer(value: object) -> bool:
    """Whole numbers of other kinds (numpy's) will do, but neither 3.0 nor True says a number of kernels."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def sheet_grid(channels: int) -> tuple[int, int]:
    """The most nearly square (h, w) with h * w = channels and h <= w."""
    height = next(h for h in range(math.isqrt(channels), 0, -1) if channels % h == 0)
    return height, channels // height


def pooled_channels(channels: int, stride: int, layout: str) -> int:
    """How many channels an average with this stride leaves of `channels`."""
    grid = (channels,) if layout == "line" else sheet_grid(channels)
    return math.prod(math.ceil(side / stride) for side in grid)


def _written_out(z: Tensor, pool_size: int, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
    """The average as sums of shifted copies: torch.compile makes one kernel of it and one of its transpose."""
    sheet = z.unflatten(dim, grid)
    for axis in range(dim, dim + len(grid)):
        behind, half = [0, 0] * (sheet.dim() - 1 - axis), pool_size // 2
        shifts = [functional.pad(sheet, [*behind, shift, -shift]) for shift in range(-half, half + 1)]
        place = torch.arange(sheet.shape[axis], device=z.device)
        count = 1 + place.clamp(max=half) + place.flip(0).clamp(max=half)
        sheet = sum(shifts[1:], shifts[0]) / count.to(z.dtype).view(-1, *[1] * (sheet.dim() - 1 - axis))
        sheet = sheet[(slice(None),) * axis + (slice(None, None, stride),)]
    average = sheet.flatten(dim, dim + len(grid) - 1)
    # Sheets know no channels_last, and noise is drawn in the memory order of what it is added to.
    return average.contiguous(memory_format=torch.channels_last) if _is_channels_last(z) else average


class _KernelAverage(torch.autograd.Function):
    """One 2-d average pool: where tensors are as small as weights a GPU waits for launches, not for memory.

    On a CPU activations in channels_last are summed by shifts instead (`kapdist.kap.shifts`).

    The transpose is the same pool, after the edges' shares are put right. A Function of its own because autograd
    would keep z, and because torch 2.11's avg_pool2d_backward is wrong on GPUs in channels_last. Its derivative
    in forward mode is the average itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, pool_size: int, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
        sheets = _as_sheets(z, grid, dim)
        if stride == 1 and _shifts_pay(sheets):
            return _from_flat(shifted_means(_flat(sheets), pool_size, sides_of(grid)), z, grid, dim)
        sizes, strides, paddings = _window(pool_size, stride, grid)
        means = functional.avg_pool2d(sheets, sizes, strides, paddings, count_include_pad=False)
        # Of the means nobody keeps anything, but torch forbids in-place operations on what it takes for a view of
        # them. Detached it is none, and nothing is copied.
        return _from_sheets(means, z, dim).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.pool_size, ctx.stride, ctx.grid, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return transposed_average(grad, ctx.pool_size, ctx.stride, ctx.grid, ctx.dim), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        average: Tensor = _KernelAverage.apply(tangent, ctx.pool_size, ctx.stride, ctx.grid, ctx.dim)
        return average


def transposed_average(grad: Tensor, pool_size: int, stride: int, grid: Sequence[int], dim: int) -> Tensor:
    """The transpose of the average along `dim`."""
    pooled = _as_sheets(grad, [math.ceil(side / stride) for side in grid], dim)
    if stride == 1 and _shifts_pay(pooled):
        means = shifted_means_transposed(_flat(pooled), pool_size, sides_of(grid))
        return _from_flat(means, grad, grid, dim)
    sheets = pooled if stride == 1 else _spread(pooled, stride, sides_of(grid))
    sizes, strides, paddings = _window(pool_size, 1, grid)
    if pool_size > 1:
        # Of tensors that only stand for others (torch's fake ones) none may be kept for the next call.
        shares_of = _edge_shares if type(grad) is Tensor else _edge_shares.__wrapped__
        sheets = sheets * shares_of(pool_size, tuple(grid), grad.dtype, grad.device)
    shares = functional.avg_pool2d(sheets, sizes, strides, paddings, count_include_pad=True)
    return _from_sheets(shares, grad, dim)


@functools.lru_cache(maxsize=256)
def _edge_shares(pool_size: int, grid: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(h, w): how much larger than a whole window's the share of each kernel in its mean is, 1 inside."""
    with torch.inference_mode(False), torch.no_grad():
        whole = torch.ones(1, 1, *sides_of(grid), dtype=torch.double, device=device)
        exists = functional.avg_pool2d(whole, *_window(pool_size, 1, grid), count_include_pad=True)
        return exists[0, 0].reciprocal().to(dtype)


def _spread(pooled: Tensor, stride: int, sides: tuple[int, int]) -> Tensor:
    """The transpose of taking every stride-th entry: zeros on the grid's other places."""
    before, after = pooled.shape[:2]
    full = pooled.new_zeros(before, *sides, after)
    full[:, ::stride, ::stride] = pooled.permute(0, 2, 3, 1)
    return full.permute(0, 3, 1, 2)


def sides_of(grid: Sequence[int]) -> tuple[int, int]:
    """A line is a sheet of width 1."""
    return (grid[0], grid[1]) if len(grid) == 2 else (grid[0], 1)


def _window(pool_size: int, stride: int, grid: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """avg_pool2d's sizes, strides and paddings, none along the width of a line."""
    sizes = [min(pool_size, side) for side in sides_of(grid)]
    strides = [min(stride, side) for side in sides_of(grid)]
    return sizes, strides, [size // 2 for size in sizes]


def _as_sheets(z: Tensor, grid: Sequence[int], dim: int) -> Tensor:
    """(before, after, height, width) in channels_last: the kernels as pixels, all else as batch and channels.

    before counts the entries that lie farther apart in memory than the kernels, after those that lie closer:
    for the two memory formats of torch's convolutions a view of z.
    """
    if _is_channels_last(z):
        z, dim = z.permute(0, 2, 3, 1), (0, 3, 1, 2)[dim]
    before, after = math.prod(z.shape[:dim]), math.prod(z.shape[dim + 1 :])
    return z.reshape(before, *sides_of(grid), after).permute(0, 3, 1, 2)


def _from_sheets(sheets: Tensor, like: Tensor, dim: int) -> Tensor:
    """The inverse of `_as_sheets`, with like's memory format and shape, save that dim has the sheets' kernels."""
    shape = list(like.shape)
    shape[dim] = sheets.shape[2] * sheets.shape[3]
    lines = sheets.permute(0, 2, 3, 1)
    if not _is_channels_last(like):
        return lines.reshape(shape)
    batch, channels, height, width = shape
    return lines.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _shifts_pay(sheets: Tensor) -> bool:
    """Whether kernels are neighbours in memory, on a CPU, of more than one sheet."""
    return sheets.device.type == "cpu" and sheets.shape[1] == 1 and sheets.shape[0] > 1


def _flat(sheets: Tensor) -> Tensor:
    """(before, kernels) of (before, 1, height, width)."""
    return sheets.flatten(1)


def _from_flat(flat: Tensor, like: Tensor, grid: Sequence[int], dim: int) -> Tensor:
    """The inverse of `_as_sheets` and `_flat`; no view to autograd, so that it may be changed in place."""
    return _from_sheets(flat.view(-1, 1, *sides_of(grid)), like, dim).detach()


def _is_channels_last(z: Tensor) -> bool:
    """By the strides: is_contiguous also says yes to contiguous 1 x 1 weights, whose format must stay theirs."""
    return z.dim() == 4 and z.stride()[1:] == (1, z.shape[3] * z.shape[1], z.shape[1])
