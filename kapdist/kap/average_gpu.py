"""Averages of several layers' weights in one Triton kernel, together with the change of precision."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kapdist.kap.normal_gpu import launch


@triton.jit
def _average(  # type: ignore[no-untyped-def]
    source, out, owners, table, transposed: tl.constexpr, double: tl.constexpr, entries: tl.constexpr,
    columns: tl.constexpr,
):  # fmt: skip
    """One tile of one layer's averages, or of their transpose.

    A row of the table is a layer's: first tile, first entry before and after, entries of a kernel, height and
    width of its sheet, half a window and the stride along both.
    """
    row = table + tl.load(owners + tl.program_id(0)) * columns
    tile = tl.program_id(0) - tl.load(row)
    before, after, rest = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3).to(tl.int32)
    height, width = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    half_h, half_w = tl.load(row + 6).to(tl.int32), tl.load(row + 7).to(tl.int32)
    stride_h, stride_w = tl.load(row + 8).to(tl.int32), tl.load(row + 9).to(tl.int32)
    pooled_h, pooled_w = tl.cdiv(height, stride_h), tl.cdiv(width, stride_w)
    entry = tile.to(tl.int32) * entries + tl.arange(0, entries)
    kernel, place = entry // rest, entry % rest
    if transposed:
        exists = kernel < height * width
        h, w = kernel // width, kernel % width
    else:
        exists = kernel < pooled_h * pooled_w
        h, w = kernel // pooled_w * stride_h, kernel % pooled_w * stride_w
    total = tl.zeros((entries,), tl.float64 if double else tl.float32)
    shift_h = -half_h
    while shift_h <= half_h:
        shift_w = -half_w
        while shift_w <= half_w:
            y, x = h + shift_h, w + shift_w
            there = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            if transposed:
                there = there & (y % stride_h == 0) & (x % stride_w == 0)
                neighbour = y // stride_h * pooled_w + x // stride_w
                value = tl.load(source + after + neighbour * rest + place, mask=there, other=0).to(total.dtype)
                total += value / _window(y, x, height, width, half_h, half_w).to(total.dtype)
            else:
                total += tl.load(source + before + (y * width + x) * rest + place, mask=there, other=0).to(
                    total.dtype
                )
            shift_w += 1
        shift_h += 1
    if transposed:
        tl.store(out + before + entry, total.to(out.dtype.element_ty), mask=exists)
    else:
        total = total / _window(h, w, height, width, half_h, half_w).to(total.dtype)
        tl.store(out + after + entry, total.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _window(h, w, height, width, half_h, half_w):  # type: ignore[no-untyped-def]
    """How many kernels exist in the window about (h, w); at least 1 also beyond the sheet."""
    rows = tl.minimum(h, half_h) + tl.minimum(height - 1 - h, half_h) + 1
    columns = tl.minimum(w, half_w) + tl.minimum(width - 1 - w, half_w) + 1
    return tl.maximum(rows * columns, 1)


def average(source: Tensor, out: Tensor, owners: Tensor, table: Tensor, transposed: bool, tile: int) -> None:
    """Writes the averages of the layers in `source` into `out`, flat both; see `kapdist.kap.ahead` for the rest."""
    double = out.dtype == torch.float64 or source.dtype == torch.float64
    arguments = (source, out, owners, table, transposed, double, tile, table.shape[1])
    launch(_average, len(owners), arguments, (out.device.index, source.dtype, out.dtype, transposed))
