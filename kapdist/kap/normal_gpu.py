"""The numbers of `kapdist.kap.normal`, drawn, scaled and added in one Triton kernel.

Key and count of the draws lie on the device, and the kernel counts its own draw: a CUDA graph that is
replayed draws anew.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kapdist.kap.normal import BLOCK, RUN

_INT32 = 2**31 - 1
_AT_ONCE = 16  # bytes that a thread reads in one instruction
_MOST_PROGRAMS = 1056  # each counts itself once, at one address: 8 for each multiprocessor of a large GPU
_ANGLE = 2 * math.pi
_MINUS_2_LN_2 = -2 * math.log(2)


@triton.jit
def _approximate(x, instruction: tl.constexpr):  # type: ignore[no-untyped-def]
    """The GPU's own instruction; Triton's interpreter has none."""
    return tl.inline_asm_elementwise(instruction, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _pair(word, std, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two normal numbers from a word; its bits become fractions of 1 without the slow conversion of integers."""
    share = ((word >> 9) & 0x7FFFF8 | 0x3F800004).to(tl.float32, bitcast=True) - 1
    turn = (((word & 4095) << 11 | 0x3F800000).to(tl.float32, bitcast=True) - 1.1248779296875) * angle
    if fast:
        logarithm = _approximate(share, "lg2.approx.ftz.f32 $0, $1;")
        along = _approximate(turn, "cos.approx.ftz.f32 $0, $1;")
        across = _approximate(turn, "sin.approx.ftz.f32 $0, $1;")
        # an approximate logarithm may be above 0
        radius = _approximate(tl.maximum(ln * logarithm, 0), "sqrt.approx.ftz.f32 $0, $1;")
    else:
        logarithm, along, across = tl.log2(share), tl.cos(turn), tl.sin(turn)
        radius = tl.sqrt(tl.maximum(ln * logarithm, 0))
    radius *= std
    return radius * along, radius * across


@triton.jit
def _philox(key, draw, counter):  # type: ignore[no-untyped-def]
    """The words of `kapdist.kap.normal.philox`, each product of 32 bits by 32 in one instruction."""
    k, m = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    b, c, d = draw.to(tl.uint32), counter * 0 + (draw >> 32).to(tl.uint32), 0
    for _ in tl.static_range(7):
        even, odd = counter.to(tl.uint64) * 0xD2511F53, c.to(tl.uint64) * 0xCD9E8D57
        counter, b = (odd >> 32).to(tl.uint32) ^ b ^ k, odd.to(tl.uint32)
        c, d = (even >> 32).to(tl.uint32) ^ d ^ m, even.to(tl.uint32)
        k, m = (k + 0x9E3779B9).to(tl.uint32), (m + 0xBB67AE85).to(tl.uint32)
    return counter, b, c, d


@triton.jit
def _zero_like(given):  # type: ignore[no-untyped-def]
    """0, which Triton takes for worked out of what was read: so it lays the numbers out over threads as that.

    (Else it moves each by way of shared memory before it is added. Machine code has nothing of this.)
    """
    bits = given.to(tl.core.get_int_dtype(given.dtype.primitive_bitwidth, False), bitcast=True)
    return ((bits & 1) >> 1).to(tl.uint32)


@triton.jit
def _add_to(given, out, places, numel, number, adds: tl.constexpr):  # type: ignore[no-untyped-def]
    if adds:
        number += given.to(tl.float32)
    tl.store(out + places, number.to(out.dtype.element_ty), mask=places < numel)


@triton.jit
def _add_tile(  # type: ignore[no-untyped-def]
    z, out, key, draw, tile, std, numel, adds: tl.constexpr, step: tl.constexpr,
    lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, lanes)[None, :]
    block = tile.to(tl.int64) * step + tl.arange(0, step)[:, None]
    places = block * (8 * lanes) + lane
    # All reads before all writes: memory answers while the numbers are worked out.
    runs = (0, 1, 2, 3, 4, 5, 6, 7)
    given = [tl.load(z + places + r * lanes, mask=places + r * lanes < numel, other=0) if adds else 0 for r in runs]
    counter = (block * lanes + lane).to(tl.uint32)
    if adds:
        counter += _zero_like(given[0])
    words = _philox(key, draw, counter)
    for j in tl.static_range(4):
        along, across = _pair(words[j], std, angle, ln, fast)
        _add_to(given[2 * j], out, places + 2 * j * lanes, numel, along, adds)
        _add_to(given[2 * j + 1], out, places + (2 * j + 1) * lanes, numel, across, adds)


@triton.jit
def _count(state, draw):  # type: ignore[no-untyped-def]
    """The last program to come here counts the draw: every other one has read the count before."""
    tl.debug_barrier()
    if tl.atomic_add(state + 2, 1) == tl.num_programs(0) - 1:
        tl.store(state + 2, 0)
        tl.store(state + 1, draw + 1)


@triton.jit
def _add_normal(  # type: ignore[no-untyped-def]
    z, out, state, std, numel, adds: tl.constexpr, step: tl.constexpr,
    lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    key, draw = tl.load(state), tl.load(state + 1)
    tiles = tl.cdiv(numel, step * 8 * lanes)
    tile = tl.program_id(0)
    while tile < tiles:
        _add_tile(z, out, key, draw, tile, std, numel, adds, step, lanes, angle, ln, fast)
        tile += tl.num_programs(0)
    _count(state, draw)


@triton.jit
def _add_rows(  # type: ignore[no-untyped-def]
    out, state, std, numel, tiles, adds: tl.constexpr, step: tl.constexpr,
    lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    """A program for each tile of each row; state holds the key, then each row's draw."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    key, draw = tl.load(state), tl.load(state + 1 + row)
    start = out + row.to(tl.int64) * numel
    _add_tile(start, start, key, draw, tile, std, numel, adds, step, lanes, angle, ln, fast)


_FAST = isinstance(_add_normal, triton.JITFunction) and torch.version.hip is None
_compiled: dict[tuple[Any, ...], Any] = {}


def add_normal(z: Tensor | None, out: Tensor, std: float, state: Tensor) -> None:
    """Writes z + std * n into out, which may be z, and counts the draw; without z, std * n alone.

    Shapes: z and out are flat and contiguous, state is (key, draws, 0) in int64. Computed in float32.
    """
    numel = out.numel()
    source = out if z is None else z
    blocks = _AT_ONCE // source.element_size()  # of their runs each of 128 threads has so many places
    programs = min(_MOST_PROGRAMS, triton.cdiv(numel, blocks * BLOCK))
    # A float: of the whole number 1 Triton makes a constant of the kernel that is kept for every other std.
    arguments = (source, out, state, float(std), numel, z is not None, blocks, RUN, _ANGLE, _MINUS_2_LN_2, _FAST)
    size = numel == 1, numel % 16 == 0, numel > _INT32
    launch(_add_normal, programs, arguments, (out.device.index, source.dtype, out.dtype, z is None, *size))


def add_rows(out: Tensor, std: float, state: Tensor) -> None:
    """Adds std * its own draw to each row of out, (rows, numel), contiguous; state is (key, *draws) in int64.

    What is drawn is a stream's as `add_normal` has it, but nothing is counted.
    """
    rows, numel = out.shape
    blocks = _AT_ONCE // out.element_size()
    tiles = triton.cdiv(numel, blocks * BLOCK)
    arguments = (out, state, float(std), numel, tiles, True, blocks, RUN, _ANGLE, _MINUS_2_LN_2, _FAST)
    size = numel == 1, numel % 16 == 0, tiles == 1, tiles % 16 == 0
    launch(_add_rows, rows * tiles, arguments, (out.device.index, out.dtype, *size))


def launch(kernel: Any, programs: int, arguments: tuple[Any, ...], kind: tuple[Any, ...]) -> None:
    """Launches a kernel: past Triton's own look into the arguments, which takes longer than a small kernel.

    `kind` tells what of the arguments has to be compiled apart, pointers' alignment aside; numbers that no kernel
    is compiled for are floats.
    """
    # Each pointer's own: a kernel for one that is aligned reads and writes 16 bytes there at a time.
    aligned = [argument.data_ptr() % 16 == 0 for argument in arguments if isinstance(argument, Tensor)]
    found = _compiled.get(key := (kernel, *kind, *aligned))
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, arguments, kind)
    elif found is not None:
        found[(programs, 1, 1)](*arguments)
    else:
        compiled = kernel[(programs,)](*arguments)
        if compiled is not None:  # as by Triton's interpreter
            _compiled[key] = compiled
