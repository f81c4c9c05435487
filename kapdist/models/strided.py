"""Strided 1 x 1 convolutions on CPUs: every stride-th pixel is taken first, then a convolution of stride 1.

That is the same function. oneDNN 3.12 (torch 2.13) writes out of bounds when it computes the weight gradient of a
strided 1 x 1 convolution of fewer than 16 input channels, in channels_last, of an odd batch, on two or more
threads, where the CPU has AVX-512: the process dies at some later place. It is never asked to here, whatever the
CPU, so that all CPUs compute alike.
"""

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class _PixelsFirst(nn.Conv2d):
    """What a guarded convolution does before its class's own computation."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu":
            return super()._conv_forward(x, weight, bias)
        if self.padding != "valid" and any(self.padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = functional.pad(x, self._reversed_padding_repeated_twice, mode)
        pixels = functional.avg_pool2d(x, 1, self.stride)  # of one pixel each; a slice's gradient costs more
        return functional.conv2d(pixels, weight, bias, groups=self.groups)


def guard_strided(model: nn.Module) -> nn.Module:
    """Have the model's strided 1 x 1 convolutions take their pixels first on a CPU, in place; returns the model.

    Parameters, hooks and the state_dict's keys stay. Whoever replaces convolutions by their class (`kapify`,
    `fold`) does it before. A model whose weights are frozen needs no guard: their gradients are not computed.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, _PixelsFirst) and _is_strided(module):
            kind: Any = type(module)
            module.__class__ = _guarded(kind)
    return model


def _is_strided(conv: nn.Conv2d) -> bool:
    return set(conv.kernel_size) == {1} and max(conv.stride) > 1


@functools.cache
def _guarded(kind: type[nn.Conv2d]) -> Any:
    return type(f"PixelsFirst{kind.__name__}", (_PixelsFirst, kind), {})
