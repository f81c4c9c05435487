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

    At the edges the mean is over the kernels that exist, so a constant stays a constant. With layout "sheet"
    the C kernels lie row by row on the most nearly square grid h x w (h * w = C, h <= w), the window is
    kernel_size x kernel_size and the stride goes along both sides of the grid.

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
    """Shifted sums divided by the counts; the transpose divides first and is the same filter.

    A Function of its own because autograd would replay each shifted in-place sum as several copies: measured
    on all of ResNet-50's weights, its backward takes 2 to 8 times as long. Without a jvp, because torch.compile
    refuses a Function that has one: forward-mode differentiation is not supported.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, kernel_size: int, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
        sheet = z.unflatten(dim, grid)
        for axis in range(dim, dim + len(grid)):
            sheet = _divide_by_counts(_window_sums(sheet, kernel_size, axis), kernel_size, axis)
        if stride > 1:
            sheet = _every(sheet, stride, dim, len(grid)).clone()
        return sheet.flatten(dim, dim + len(grid) - 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.kernel_size, ctx.stride, ctx.grid, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        dim, axes = ctx.dim, len(ctx.grid)
        kept = [math.ceil(side / ctx.stride) for side in ctx.grid]
        sheet = grad.unflatten(dim, kept)
        if ctx.stride > 1:
            sheet = _spread(sheet, ctx.stride, ctx.grid, dim)
        for axis in range(dim, dim + axes):
            sheet = _window_sums(_divide_by_counts(sheet.clone(), ctx.kernel_size, axis), ctx.kernel_size, axis)
        return sheet.flatten(dim, dim + axes - 1), None, None, None, None


def _window_sums(z: Tensor, kernel_size: int, axis: int) -> Tensor:
    """Sums over the window around each entry of `axis`, as a new tensor of z's memory format."""
    sums, length = z.clone(), z.shape[axis]
    for shift in range(1, kernel_size // 2 + 1):
        sums.narrow(axis, shift, length - shift).add_(z.narrow(axis, 0, length - shift))
        sums.narrow(axis, 0, length - shift).add_(z.narrow(axis, shift, length - shift))
    return sums


def _divide_by_counts(sums: Tensor, kernel_size: int, axis: int) -> Tensor:
    """Divides in place by how many kernels each window holds: fewer within half a window of an edge."""
    half, length = kernel_size // 2, sums.shape[axis]
    for edge in range(half):
        sums.select(axis, edge).div_(half + 1 + edge)
        sums.select(axis, length - 1 - edge).div_(half + 1 + edge)
    sums.narrow(axis, half, length - 2 * half).div_(kernel_size)
    return sums


def _every(z: Tensor, stride: int, dim: int, axes: int) -> Tensor:
    """A view of every stride-th entry of `axes` dimensions from `dim` on."""
    return z[(slice(None),) * dim + (slice(None, None, stride),) * axes]


def _spread(grad: Tensor, stride: int, grid: tuple[int, ...], dim: int) -> Tensor:
    """The transpose of `_every`: zeros on the grid's other places."""
    shape = (*grad.shape[:dim], *grid, *grad.shape[dim + len(grid) :])
    full = grad.new_zeros(shape)
    _every(full, stride, dim, len(grid)).copy_(grad)
    return full
