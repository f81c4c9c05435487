"""The operator that averages the weights of several layers at once, in another precision where that is asked for.

    kapdist::average_rows(flat, owners, table, transposed, numel, dtype)

`flat` has the layers' weights one after another, in memory order: kernels as rows. On GPUs with Triton it is one
kernel (`average_gpu`), elsewhere the average of `kapdist.kap.average` layer by layer. Its derivative is its
transpose, which is the same operator.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kapdist.kap.average import kernel_average, transposed_average
from kapdist.kap.draw import HAS_TRITON

TILE = 1024  # entries, of one kernel at most, that one program on the GPU averages


class Rows(NamedTuple):
    """A layer's kernels: a sheet (a line is one of width 1) of rows of `rest` entries, window and stride."""

    sheet: tuple[int, int]
    rest: int
    half: tuple[int, int]
    stride: tuple[int, int]

    @property
    def before(self) -> int:
        """Entries before the average."""
        return math.prod(self.sheet) * self.rest

    @property
    def after(self) -> int:
        pooled = (math.ceil(side / stride) for side, stride in zip(self.sheet, self.stride, strict=True))
        return math.prod(pooled) * self.rest


def rows_of(grid: Sequence[int], rest: int, pool_size: int, stride: int) -> Rows:
    half = pool_size // 2
    if len(grid) == 1:
        return Rows((grid[0], 1), rest, (half, 0), (stride, 1))
    return Rows((grid[0], grid[1]), rest, (half, half), (stride, stride))


def tables(layers: Sequence[Rows], device: torch.device) -> tuple[Tensor, Tensor]:
    """(tiles,): the layer of each tile; (layers, 10): what `average_gpu` has to know of each."""
    owners: list[int] = []
    table, before, after = [], 0, 0
    for number, rows in enumerate(layers):
        table.append([len(owners), before, after, rows.rest, *rows.sheet, *rows.half, *rows.stride])
        owners += [number] * (math.prod(rows.sheet) * math.ceil(rows.rest / TILE))
        before, after = before + rows.before, after + rows.after
    with torch.inference_mode(False):
        return torch.tensor(owners, dtype=torch.int32, device=device), torch.tensor(table, device=device)


torch.library.define(
    "kapdist::average_rows",
    "(Tensor flat, Tensor owners, Tensor table, bool transposed, SymInt numel, ScalarType dtype) -> Tensor",
)


def average_rows(
    flat: Tensor, owners: Tensor, table: Tensor, transposed: bool, numel: int, dtype: torch.dtype
) -> Tensor:
    out = torch.empty(numel, dtype=dtype, device=flat.device)
    if flat.is_cuda and HAS_TRITON:
        from kapdist.kap.average_gpu import average

        average(flat, out, owners, table, transposed, TILE)
        return out
    wide = flat.to(torch.promote_types(flat.dtype, dtype))
    for row in table.tolist():
        _one_layer(wide, out, row, transposed)
    return out


def _one_layer(flat: Tensor, out: Tensor, row: Sequence[int], transposed: bool) -> None:
    _, before, after, rest, height, width, half, half_w, stride, stride_w = row
    rows = Rows((height, width), rest, (half, half_w), (stride, stride_w))
    layout, grid = ("line", (height,)) if width == 1 else ("sheet", (height, width))
    whole = slice(before, before + rows.before)
    pooled = slice(after, after + rows.after)
    if transposed:
        grad = flat[pooled].view(-1, rest)
        out[whole] = transposed_average(grad, 2 * half + 1, stride, grid, 0).flatten()
    else:
        z = flat[whole].view(-1, rest)
        out[pooled] = kernel_average(z, 2 * half + 1, stride=stride, layout=layout, dim=0).flatten()


torch.library.impl("kapdist::average_rows", "default", average_rows)


@torch.library.register_fake("kapdist::average_rows")
def _shape(flat: Tensor, owners: Tensor, table: Tensor, transposed: bool, numel: int, dtype: torch.dtype) -> Tensor:
    return flat.new_empty(numel, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    flat, ctx.owners, ctx.table, ctx.transposed, _, _ = inputs
    ctx.numel, ctx.dtype = flat.numel(), flat.dtype


def _transpose(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (ctx.owners, ctx.table, not ctx.transposed, ctx.numel, ctx.dtype)
    found: Tensor = torch.ops.kapdist.average_rows(grad.contiguous(), *arguments)
    return found, None, None, None, None, None


torch.library.register_autograd("kapdist::average_rows", _transpose, setup_context=_keep)
