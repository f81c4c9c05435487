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
    """Up to a tile of one kernel's average, or of its transpose: what differs by kernel is worked out once for all.

    A row of the table is a layer's: first tile, first entry before and after, entries of a kernel, height and
    width of its sheet, half a window and the stride along both.
    """
    row = table + tl.load(owners + tl.program_id(0)) * columns
    tile = (tl.program_id(0) - tl.load(row)).to(tl.int32)
    before, after, rest = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3).to(tl.int32)
    height, width = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    half_h, half_w = tl.load(row + 6).to(tl.int32), tl.load(row + 7).to(tl.int32)
    stride_h, stride_w = tl.load(row + 8).to(tl.int32), tl.load(row + 9).to(tl.int32)
    pooled_h, pooled_w = tl.cdiv(height, stride_h), tl.cdiv(width, stride_w)
    parts = tl.cdiv(rest, entries)
    kernel = tile // parts
    place = tile % parts * entries + tl.arange(0, entries)
    total = tl.zeros((entries,), tl.float64 if double else tl.float32)
    if transposed:
        exists = place < rest
        first, target = source + after, out + before
        h, w = kernel // width, kernel % width
        step_h, step_w, line = stride_h, stride_w, pooled_w
    else:
        exists = place < tl.where(kernel < pooled_h * pooled_w, rest, 0)
        first, target = source + before, out + after
        h, w = kernel // pooled_w * stride_h, kernel % pooled_w * stride_w
        step_h, step_w, line = 1, 1, width
    y, last_y = tl.cdiv(tl.maximum(h - half_h, 0), step_h), tl.minimum(h + half_h, height - 1) // step_h
    first_x, last_x = tl.cdiv(tl.maximum(w - half_w, 0), step_w), tl.minimum(w + half_w, width - 1) // step_w
    while y <= last_y:
        x = first_x
        while x <= last_x:
            value = tl.load(first + (y * line + x) * rest + place, mask=exists, other=0).to(total.dtype)
            if transposed:
                window = _window(y * step_h, x * step_w, height, width, half_h, half_w)
                total += value * (1 / window.to(total.dtype))
            else:
                total += value
            x += 1
        y += 1
    if not transposed:
        total = total / _window(h, w, height, width, half_h, half_w).to(total.dtype)
    tl.store(target + kernel * rest + place, total.to(out.dtype.element_ty), mask=exists)


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
