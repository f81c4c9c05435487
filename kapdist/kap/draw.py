"""One draw of noise, scaled and added, by the fastest that this machine has: Triton, numba, torch's operations.

Where numba or Triton are missing the numbers are the same, to rounding, and take several times as long.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from kapdist.kap.normal import BLOCK, normal

HAS_TRITON = importlib.util.find_spec("triton") is not None and os.environ.get("KAPDIST_TRITON") != "0"
"""Whether kernels of kapdist's own are used on GPUs: where Triton is, and nobody asks that they be left out."""
_AT_ONCE = 256 * BLOCK  # of a precision other than float32: what is drawn for it stays in the cache
_LEAST_FOR_A_THREAD = 64 * BLOCK


def add_draw(z: Tensor | None, out: Tensor, std: float, stream: Tensor) -> None:
    """Writes z (without one, 0) + std * n into out, which may be z, and counts the draw of the stream.

    Shapes: z and out are flat and contiguous; stream is (key, draws, 0) in int64, on their device.
    """
    if out.numel() == 0:
        stream[1] += 1
    elif out.is_cuda and HAS_TRITON:
        from kapdist.kap.normal_gpu import add_normal

        add_normal(z, out, std, stream)
    else:
        key, draw, _ = stream.tolist()
        stream[1] += 1
        if z is None:
            out.zero_()
        elif z is not out:
            out.copy_(z)
        _add(out, std, key, draw)


def add_draws(out: Tensor, std: float, key: int, draws: Tensor) -> None:
    """Adds std * n to out, each row's n a draw of its own of this key's stream, whichever rows there are beside it.

    Shapes: out is (rows, numbers) and contiguous; draws is (rows,) in int64, on the CPU.
    """
    if out.is_cuda and HAS_TRITON:
        from kapdist.kap.normal_gpu import add_rows

        state = torch.cat([torch.tensor([key]), draws])
        add_rows(out, std, state.to(out.device, non_blocking=True))
    else:
        for row, draw in zip(out, draws.tolist(), strict=True):
            _add(row, std, key, draw)


def _add(out: Tensor, std: float, key: int, draw: int) -> None:
    loops = _of_numba() if out.device.type == "cpu" else None
    if loops is None:
        out.add_(normal(out.numel(), key, draw, out.device), alpha=std)
        return
    threads = min(torch.get_num_threads(), max(out.numel() // _LEAST_FOR_A_THREAD, 1))
    share = -(-out.numel() // (threads * BLOCK)) * BLOCK
    add = functools.partial(_add_piece, loops, out, std, key, draw, share)
    starts = range(0, out.numel(), share)
    if len(starts) == 1:
        add(0)
    else:
        list(_workers(os.getpid(), threads).map(add, starts))


def _add_piece(
    loops: Callable[..., Any], out: Tensor, std: float, key: int, draw: int, share: int, start: int
) -> None:
    piece = out[start : start + share]
    if out.dtype == torch.float32:
        loops(piece.numpy(), std, key, draw, start // BLOCK)
        return
    with torch.inference_mode(out.is_inference()):  # which is a thread's own
        for first in range(0, piece.numel(), _AT_ONCE):
            part = piece[first : first + _AT_ONCE]
            drawn = torch.zeros(part.shape)
            loops(drawn.numpy(), std, key, draw, (start + first) // BLOCK)
            part.add_(drawn)


@functools.lru_cache(maxsize=1)
def _of_numba() -> Callable[..., Any] | None:
    try:
        from kapdist.kap.normal_cpu import add_normal
    except ImportError:
        return None
    return add_normal


@functools.lru_cache(maxsize=1)
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"noise-of-{process}")
