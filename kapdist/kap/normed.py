"""Norm, average and noise of activations at once, where the norm takes the statistics of the batch.

Step by step, as torch has them, activations are read and written seven times on their way from the convolution;
here they are read for the statistics, read again and written. On GPUs that is one Triton kernel behind the
statistics (`normed_gpu`) and one for the average's transpose; the norm's derivative is torch's. Where that cannot
be (`pays`) a layer calls one module after the other, which gives the same numbers to rounding.
"""

import functools
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from kapdist.kap.average import check_window, kernel_average, sides_of, transposed_average
from kapdist.kap.draw import HAS_TRITON, add_draw

WIDEST = 3  # the kernel has code for each place of a window, which takes long to compile for many
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


class Window(NamedTuple):
    """Of an average with stride 1."""

    pool_size: int
    layout: str
    grid: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """Of the sheet, a line being one of width 1."""
        return sides_of(self.grid)

    @property
    def halves(self) -> tuple[int, int]:
        """How far it reaches along each side."""
        half = self.pool_size // 2
        return half, half if len(self.grid) == 2 else 0


@functools.lru_cache(maxsize=256)
def window_of(channels: int, pool_size: int, layout: str) -> Window:
    return Window(pool_size, layout, check_window(channels, pool_size, 1, layout))


Noise = tuple[float, Tensor]
"""Standard deviation and stream."""


def pays(
    norm: nn.BatchNorm2d | nn.SyncBatchNorm, z: Tensor, pool_size: int, stride: int
) -> TypeGuard[nn.BatchNorm2d]:
    """Whether activations (batch, channels, height, width) go through a norm and its average at once."""
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return (
        _worthwhile(z.device)
        and _is_plain(z)
        and type(norm) is nn.BatchNorm2d  # another kind may do more, or ask other ranks
        and not any(getattr(norm, hooks) for hooks in HOOKS)
        and norm.running_mean is not None
        and norm.momentum is not None
        and all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
        and z.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and z.is_contiguous(memory_format=torch.channels_last)
        and z.numel() > z.shape[1]  # else torch's own error
        and pool_size <= WIDEST
        and stride == 1
    )


def _worthwhile(device: torch.device) -> bool:
    return device.type == "cuda" and HAS_TRITON


def _is_plain(z: Tensor) -> bool:
    """Whether it is a tensor of numbers, in a pass that torch neither records nor differentiates forward."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0:
        return False
    return type(z) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(z)


def normed_average(norm: nn.BatchNorm2d, z: Tensor, window: Window, noise: Noise | None) -> Tensor:
    """A norm(z) + n of activations for which it `pays`, in z's dtype; the norm's statistics learn, the draw counts.

    Shapes: (batch, channels, height, width), kept.
    """
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        assert norm.momentum is not None
        mean, variance = torch.batch_norm_update_stats(z, norm.running_mean, norm.running_var, norm.momentum)
    out: Tensor = _NormedAverage.apply(z, norm.weight, norm.bias, mean, variance, norm.eps, window, noise)
    return out


class _NormedAverage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        window: Window,
        noise: Noise | None,
    ) -> Tensor:
        given = Norm(mean, variance, weight, bias, eps)
        out, deviation = _average(z.detach(), given, window, noise)
        ctx.save_for_backward(z, weight, mean, deviation)
        ctx.eps, ctx.window, ctx.has_bias = eps, window, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, mean, deviation = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], weight is not None, ctx.has_bias
        transposed = _transposed(grad, ctx.window)
        found = torch.ops.aten.native_batch_norm_backward(
            transposed, z, weight, None, None, mean, deviation, True, ctx.eps, wanted
        )
        return (*(each if want else None for each, want in zip(found, wanted, strict=True)), *[None] * 5)


class Norm(NamedTuple):
    """What a norm does to this batch; all but eps are of channels, in float32."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def _average(z: Tensor, norm: Norm, window: Window, noise: Noise | None) -> tuple[Tensor, Tensor]:
    """A norm(z) + n, and 1 / the standard deviation of each channel."""
    out = torch.empty_like(z)
    flat = _in_memory_order(out)
    if z.is_cuda:
        from kapdist.kap.normed_gpu import coefficients, sums

        deviation, table, shift = coefficients(*norm, window.sides, window.halves)
        sums(_in_memory_order(z), flat, table, shift, window.sides, window.halves, noise)
        return out, deviation
    deviation = (norm.variance + norm.eps).rsqrt()
    normed = functional.batch_norm(z.float(), norm.mean, norm.variance, norm.weight, norm.bias, eps=norm.eps)
    out.copy_(kernel_average(normed, window.pool_size, layout=window.layout, dim=1))
    if noise is not None:
        add_draw(flat, flat, *noise)
    return out, deviation


def _transposed(grad: Tensor, window: Window) -> Tensor:
    """The average's transpose, in a way that torch can differentiate where it wants to."""
    if torch.is_grad_enabled() or not grad.is_cuda:
        return transposed_average(grad, window.pool_size, 1, window.grid, 1)
    from kapdist.kap.normed_gpu import sums, transposed_table

    grad = grad.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(grad)
    table = transposed_table(window.sides, window.halves, grad.device)
    sums(_in_memory_order(grad), _in_memory_order(out), table, None, window.sides, window.halves, None)
    return out


def _in_memory_order(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).view(-1)
