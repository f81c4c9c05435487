"""The mean filter along the kernel dimension.

Source: "Learning Robust Kernel Ensembles with Kernel Average Pooling", ICLR 2023 submission.
"""

import math
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("line", "sheet")


def kernel_average(z: Tensor, kernel_size: int, *, stride: int = 1, layout: str = "line", dim: int = 1) -> Tensor:
    """Mean of the `kernel_size` neighbouring kernels of every `stride`-th kernel, along `dim`.

    At the edges the mean is over the kernels that exist, so a constant stays a constant (to rounding). With
    layout "sheet" the C kernels lie row by row on the most nearly square grid h x w (h * w = C, h <= w), the
    window is kernel_size x kernel_size and the stride goes along both sides of the grid.

    Shapes: dim has C kernels before and ceil(C / stride) after, a sheet ceil(h / stride) * ceil(w / stride).
    For activations (batch, channels, height, width) dim is 1, for weights (out, in, height, width) it is 0.
    The memory format of z is kept.
    Raises: ValueError for what `check_window` refuses.
    Source: the paper's section on Kernel Average Pooling; no dense C x C matrix is ever built.
    """
    dim = dim % z.dim()
    grid = check_window(z.shape[dim], kernel_size, stride, layout)
    if kernel_size == 1 and stride == 1:
        return z
    average: Tensor = _KernelAverage.apply(z, kernel_size, stride, grid, dim)
    return average


def check_window(channels: int, kernel_size: int, stride: int, layout: str) -> tuple[int, ...]:
    """The grid of the kernels: (C,) for a line, (h, w) for a sheet.

    Raises: ValueError for an unknown layout, an even or non-positive kernel_size, one greater than the grid's
    shortest side, and a stride below 1 or beyond the grid.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"the pool's kernel size must be an odd number of kernels (1, 3, 5, ...), found {kernel_size}"
        )
    grid: tuple[int, ...] = (channels,) if layout == "line" else sheet_grid(channels)
    side = min(grid)
    where = f"{channels} channels" if layout == "line" else f"{channels} channels on a {grid[0]} x {grid[1]} sheet"
    if kernel_size > side:
        raise ValueError(f"the pool's kernel size {kernel_size} does not fit {where}: expected at most {side}")
    if not 1 <= stride <= side:
        raise ValueError(f"the pool's stride {stride} leaves no channel of {where}: expected 1 to {side}")
    return grid


def sheet_grid(channels: int) -> tuple[int, int]:
    """The most nearly square (h, w) with h * w = channels and h <= w."""
    height = next(h for h in range(math.isqrt(channels), 0, -1) if channels % h == 0)
    return height, channels // height


def pooled_channels(channels: int, stride: int, layout: str) -> int:
    """How many channels an average with this stride leaves of `channels`."""
    grid = (channels,) if layout == "line" else sheet_grid(channels)
    return math.prod(math.ceil(side / stride) for side in grid)


class _KernelAverage(torch.autograd.Function):
    """Shifted sums, and the counts put right at the edges; the transpose is the same, put right elsewhere.

    A Function of its own because autograd would replay each shifted in-place sum as several copies: measured
    on all of ResNet-50's weights, its backward takes 4 to 7 times as long. Without a jvp, because torch.compile
    refuses a Function that has one: forward-mode differentiation is not supported.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, kernel_size: int, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
        sheet = z.unflatten(dim, grid)
        for axis in range(dim, dim + len(grid)):
            sheet = _average_axis(sheet, kernel_size, axis)
        if stride > 1:
            sheet = _every(sheet, stride, dim, len(grid)).clone()
        return sheet.flatten(dim, dim + len(grid) - 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.kernel_size, ctx.stride, ctx.grid, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        dim, axes = ctx.dim, len(ctx.grid)
        sheet = grad.unflatten(dim, [math.ceil(side / ctx.stride) for side in ctx.grid])
        if ctx.stride > 1:
            sheet = _spread(sheet, ctx.stride, ctx.grid, dim)
        for axis in range(dim, dim + axes):
            sheet = _spread_axis(sheet, ctx.kernel_size, axis)
        return sheet.flatten(dim, dim + axes - 1), None, None, None, None


def _average_axis(z: Tensor, kernel_size: int, axis: int) -> Tensor:
    """Means over the window around each entry of `axis`, as a new tensor of z's memory format."""
    means, last = _shifted_sums(z, kernel_size, axis), z.shape[axis] - 1
    for edge in range(kernel_size // 2):
        scale = kernel_size / _count(edge, kernel_size)
        means.select(axis, edge).mul_(scale)
        means.select(axis, last - edge).mul_(scale)
    return means


def _spread_axis(grad: Tensor, kernel_size: int, axis: int) -> Tensor:
    """The transpose of `_average_axis`: each entry's share goes to all entries of its window."""
    shares, length = _shifted_sums(grad, kernel_size, axis), grad.shape[axis]
    for edge in range(kernel_size // 2):
        count = _count(edge, kernel_size)
        missing = 1 / count - 1 / kernel_size  # the sums gave an edge's window 1 / kernel_size each
        shares.narrow(axis, 0, count).add_(grad.narrow(axis, edge, 1), alpha=missing)
        shares.narrow(axis, length - count, count).add_(grad.narrow(axis, length - 1 - edge, 1), alpha=missing)
    return shares


def _shifted_sums(z: Tensor, kernel_size: int, axis: int) -> Tensor:
    """Sums over the window around each entry of `axis`, divided by kernel_size even where fewer exist.

    The division rides along with the sums: memory traffic is all that the average costs.
    """
    sums, length, share = z / kernel_size, z.shape[axis], 1 / kernel_size
    for shift in range(1, kernel_size // 2 + 1):
        sums.narrow(axis, shift, length - shift).add_(z.narrow(axis, 0, length - shift), alpha=share)
        sums.narrow(axis, 0, length - shift).add_(z.narrow(axis, shift, length - shift), alpha=share)
    return sums


def _count(edge: int, kernel_size: int) -> int:
    """How many kernels the window around the edge-th kernel holds, where edge < kernel_size // 2."""
    return kernel_size // 2 + 1 + edge


def _every(z: Tensor, stride: int, dim: int, axes: int) -> Tensor:
    """A view of every stride-th entry of `axes` dimensions from `dim` on."""
    return z[(slice(None),) * dim + (slice(None, None, stride),) * axes]


def _spread(grad: Tensor, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
    """The transpose of `_every`: zeros on the grid's other places."""
    shape = (*grad.shape[:dim], *grid, *grad.shape[dim + len(grid) :])
    full = grad.new_zeros(shape)
    _every(full, stride, dim, len(grid)).copy_(grad)
    return full
