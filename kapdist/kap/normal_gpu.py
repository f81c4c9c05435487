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
_TILE = 4  # blocks of places at once
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
        along, across = _approximate(turn, "cos.approx.ftz.f32 $0, $1;"), _approximate(turn, "sin.approx.ftz.f32 $0, $1;")
        # an approximate logarithm may be above 0
        radius = _approximate(tl.maximum(ln * logarithm, 0), "sqrt.approx.ftz.f32 $0, $1;")
    else:
        logarithm, along, across = tl.log2(share), tl.cos(turn), tl.sin(turn)
        radius = tl.sqrt(tl.maximum(ln * logarithm, 0))
    radius *= std
    return radius * along, radius * across


@triton.jit
def _add_to(given, out, places, numel, number, adds: tl.constexpr):  # type: ignore[no-untyped-def]
    if adds:
        number += given.to(tl.float32)
    tl.store(out + places, number.to(out.dtype.element_ty), mask=places < numel)


@triton.jit
def _add_normal(  # type: ignore[no-untyped-def]
    z, out, state, std, numel, adds: tl.constexpr, step: tl.constexpr,
    lanes: tl.constexpr, angle: tl.constexpr, ln: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    key, draw = tl.load(state), tl.load(state + 1)
    lane = tl.arange(0, lanes)[None, :]
    tiles = tl.cdiv(numel, step * 8 * lanes)
    tile = tl.program_id(0)
    while tile < tiles:
        block = tile.to(tl.int64) * step + tl.arange(0, step)[:, None]
        places = block * (8 * lanes) + lane
        # All reads before all writes: memory answers while the numbers are worked out.
        runs = (0, 1, 2, 3, 4, 5, 6, 7)
        given = runs
        if adds:
            given = [tl.load(z + places + r * lanes, mask=places + r * lanes < numel, other=0) for r in runs]
        counter = (block * lanes + lane).to(tl.uint32)
        zero = counter * 0
        words = tl.philox(key, counter, zero + draw.to(tl.uint32), zero + (draw >> 32).to(tl.uint32), zero, 7)
        for j in tl.static_range(4):
            along, across = _pair(words[j], std, angle, ln, fast)
            _add_to(given[2 * j], out, places + 2 * j * lanes, numel, along, adds)
            _add_to(given[2 * j + 1], out, places + (2 * j + 1) * lanes, numel, across, adds)
        tile += tl.num_programs(0)
    # The last program to come here counts the draw: every other one has read the count before.
    tl.debug_barrier()
    if tl.atomic_add(state + 2, 1) == tl.num_programs(0) - 1:
        tl.store(state + 2, 0)
        tl.store(state + 1, draw + 1)


_FAST = isinstance(_add_normal, triton.JITFunction) and torch.version.hip is None
_compiled: dict[tuple[Any, ...], Any] = {}


def add_normal(z: Tensor | None, out: Tensor, std: float, state: Tensor) -> None:
    """Writes z + std * n into out, which may be z, and counts the draw; without z, std * n alone.

    Shapes: z and out are flat and contiguous, state is (key, draws, 0) in int64. Computed in float32.
    """
    numel = out.numel()
    programs = min(_MOST_PROGRAMS, triton.cdiv(numel, _TILE * BLOCK))
    source = out if z is None else z
    arguments = (source, out, state, std, numel, z is not None, _TILE, RUN, _ANGLE, _MINUS_2_LN_2, _FAST)
    size = numel == 1, numel % 16 == 0, numel > _INT32
    launch(_add_normal, programs, arguments, (out.device.index, source.dtype, out.dtype, z is None, *size))


def launch(kernel: Any, programs: int, arguments: tuple[Any, ...], kind: tuple[Any, ...]) -> None:
    """Launches a kernel: past Triton's own look into the arguments, which takes longer than a small kernel.

    `kind` tells what of the arguments has to be compiled apart, pointers' alignment aside.
    """
    pointers = [argument.data_ptr() for argument in arguments if isinstance(argument, Tensor)]
    found = _compiled.get(key := (kernel, *kind, any(pointer % 16 for pointer in pointers)))
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
