"""Averages over channels of activations in channels_last, normalised before and noisy behind, in Triton kernels.

Norm and average together are a sum over each place's window: of activations times coefficients that go by channel,
plus a shift. One small kernel works these out from the batch's statistics, one goes through the activations. The
transpose is the same sum with other coefficients. Noise is that of `kapdist.kap.normal_gpu`, places being counted
in memory.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kapdist.kap.average_gpu import _window
from kapdist.kap.normal import BLOCK, RUN
from kapdist.kap.normal_gpu import (
    _ANGLE,
    _AT_ONCE,
    _FAST,
    _INT32,
    _MINUS_2_LN_2,
    _MOST_PROGRAMS,
    _count,
    _pair,
    _philox,
    _zero_like,
    launch,
)
from kapdist.kap.shifts import shares


@triton.jit
def _neighbour(  # type: ignore[no-untyped-def]
    y, x, k: tl.constexpr, height: tl.constexpr, width: tl.constexpr, half_h: tl.constexpr, half_w: tl.constexpr
):  # fmt: skip
    """How many kernels on the k-th one of the window about (y, x) lies, and whether there is one."""
    down: tl.constexpr = k // (2 * half_w + 1) - half_h
    right: tl.constexpr = k % (2 * half_w + 1) - half_w
    exists = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
    return down * width + right, exists


@triton.jit
def _coefficients(  # type: ignore[no-untyped-def]
    mean, variance, weight, bias, eps, deviation, table, shift, has_weight: tl.constexpr, has_bias: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr, half_h: tl.constexpr, half_w: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    channels: tl.constexpr = height * width
    channel = tl.program_id(0) * lanes + tl.arange(0, lanes)
    here = channel < channels
    y, x = channel // width, channel % width
    share = 1 / _window(y, x, height, width, half_h, half_w).to(tl.float32)
    own = 1 / tl.sqrt(tl.load(variance + channel, mask=here, other=1) + eps)
    tl.store(deviation + channel, own, mask=here)
    total = tl.zeros((lanes,), tl.float32)
    for k in tl.static_range((2 * half_h + 1) * (2 * half_w + 1)):
        on, exists = _neighbour(y, x, k, height, width, half_h, half_w)
        other, exists = channel + on, exists & here
        scale = share / tl.sqrt(tl.load(variance + other, mask=exists, other=1) + eps)
        if has_weight:
            scale *= tl.load(weight + other, mask=exists, other=0)
        scale = tl.where(exists, scale, 0)
        total -= scale * tl.load(mean + other, mask=exists, other=0)
        if has_bias:
            total += share * tl.load(bias + other, mask=exists, other=0)
        tl.store(table + k * channels + channel, scale, mask=here)
    tl.store(shift + channel, total, mask=here)


@triton.jit
def _sum(  # type: ignore[no-untyped-def]
    z, table, shift, places, channel, numel, shifted: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
    half_h: tl.constexpr, half_w: tl.constexpr,
):  # fmt: skip
    """Of z times its coefficient over the window about each place; a column of places has one channel."""
    y, x = channel // width, channel % width
    total = tl.zeros(places.shape, tl.float32)
    for k in tl.static_range((2 * half_h + 1) * (2 * half_w + 1)):
        on, exists = _neighbour(y, x, k, height, width, half_h, half_w)
        value = tl.load(z + places + on, mask=exists & (places < numel), other=0)
        total += value.to(tl.float32) * tl.load(tl.broadcast_to(table + k * height * width + channel, places.shape))
    if shifted:
        total += tl.load(tl.broadcast_to(shift + channel, places.shape))
    return total


@triton.jit
def _sum_tile(  # type: ignore[no-untyped-def]
    z, out, table, shift, key, draw, tile, std, numel, noisy: tl.constexpr, shifted: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr, half_h: tl.constexpr, half_w: tl.constexpr, apart: tl.constexpr,
    step: tl.constexpr, lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    """Some blocks, so far apart that a place has the same channel in each."""
    lane = tl.arange(0, lanes)[None, :]
    first = tile % apart
    block = (tile // apart).to(tl.int64) * (apart * step) + first + apart * tl.arange(0, step)[:, None]
    places = block * (8 * lanes) + lane
    if noisy:
        given = tl.load(z + places, mask=places < numel, other=0)
        words = _philox(key, draw, (block * lanes + lane).to(tl.uint32) + _zero_like(given))
    for j in tl.static_range(4):
        even, odd = 2 * j * lanes, (2 * j + 1) * lanes
        above = (first * (8 * lanes) + even + lane) % (height * width)
        below = (first * (8 * lanes) + odd + lane) % (height * width)
        one = _sum(z, table, shift, places + even, above, numel, shifted, height, width, half_h, half_w)
        two = _sum(z, table, shift, places + odd, below, numel, shifted, height, width, half_h, half_w)
        if noisy:
            along, across = _pair(words[j], std, angle, ln, fast)
            one += along
            two += across
        tl.store(out + places + even, one.to(out.dtype.element_ty), mask=places + even < numel)
        tl.store(out + places + odd, two.to(out.dtype.element_ty), mask=places + odd < numel)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    z, out, table, shift, state, std, numel, noisy: tl.constexpr, shifted: tl.constexpr, height: tl.constexpr,
    width: tl.constexpr, half_h: tl.constexpr, half_w: tl.constexpr, apart: tl.constexpr, step: tl.constexpr,
    lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    if noisy:
        key, draw = tl.load(state), tl.load(state + 1)
    else:
        key, draw = 0, 0
    tiles = tl.cdiv(numel, step * apart * 8 * lanes) * apart
    tile = tl.program_id(0)
    while tile < tiles:
        _sum_tile(z, out, table, shift, key, draw, tile, std, numel, noisy, shifted, height, width, half_h, half_w,
                  apart, step, lanes, angle, ln, fast)  # fmt: skip
        tile += tl.num_programs(0)
    if noisy:
        _count(state, draw)


def coefficients(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    sides: tuple[int, int],
    halves: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / the standard deviation of each kernel, and `sums`' table and shift of norm and average.

    Shapes: all given are of a sheet's kernels, in float32; (kernels,), (places of a window, kernels), (kernels,).
    """
    places, kernels = _places(halves), math.prod(sides)
    deviation, shift, table = (mean.new_empty(size) for size in (kernels, kernels, (places, kernels)))
    affine = weight is not None, bias is not None
    given = mean, variance, mean if weight is None else weight, mean if bias is None else bias
    arguments = (*given, float(eps), deviation, table, shift, *affine, *sides, *halves, RUN)
    launch(_coefficients, triton.cdiv(kernels, RUN), arguments, (mean.device.index, *affine, *sides, *halves))
    return deviation, table, shift


@functools.lru_cache(maxsize=256)
def transposed_table(sides: tuple[int, int], halves: tuple[int, int], device: torch.device) -> Tensor:
    """The table of the average's transpose: of each other kernel in reach, its share."""
    height, width = sides
    sheet = shares(2 * halves[0] + 1, sides).view(sides)
    table = torch.zeros(_places(halves), height, width, dtype=torch.double)
    for place in range(len(table)):
        down, right = place // (2 * halves[1] + 1) - halves[0], place % (2 * halves[1] + 1) - halves[1]
        rows = slice(max(0, -down), height - max(0, down))
        columns = slice(max(0, -right), width - max(0, right))
        table[place, rows, columns] = sheet.roll((-down, -right), (0, 1))[rows, columns]
    with torch.inference_mode(False):
        return table.flatten(1).float().to(device)


def sums(
    z: Tensor,
    out: Tensor,
    table: Tensor,
    shift: Tensor | None,
    sides: tuple[int, int],
    halves: tuple[int, int],
    noise: tuple[float, Tensor] | None,
) -> None:
    """Writes the sum over each place's window of table * z, plus shift, plus noise, into `out`.

    Shapes: z and out are flat, contiguous and not the same memory, kernels (a sheet of `sides`) innermost. Noise is
    (std, state) as `kapdist.kap.normal_gpu.add_normal` has them, and its draw is counted.
    """
    numel, blocks = out.numel(), _AT_ONCE // out.element_size()
    kernels = math.prod(sides)
    apart = kernels // math.gcd(kernels, BLOCK)
    std, state = noise or (0.0, table)
    constants = (noise is not None, shift is not None, *sides, *halves, apart)
    programs = min(_MOST_PROGRAMS, triton.cdiv(numel, blocks * apart * BLOCK) * apart)
    tensors = (z, out, table, table if shift is None else shift, state)
    arguments = (*tensors, float(std), numel, *constants, blocks, RUN, _ANGLE, _MINUS_2_LN_2, _FAST)
    size = numel == 1, numel % 16 == 0, numel > _INT32
    launch(_sums, programs, arguments, (out.device.index, z.dtype, out.dtype, *constants, *size))


def _places(halves: tuple[int, int]) -> int:
    return (2 * halves[0] + 1) * (2 * halves[1] + 1)
