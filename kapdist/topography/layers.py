"""The convolutions of a network: their names, their averages, what stands before the average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kapdist.kap import KAPConv2d
from kapdist.kap.average import check_window, kernel_average, pooled_channels
from kapdist.topography.places import Average, Pairs, average_of, pairs_of


@dataclass(frozen=True)
class Layer:
    """One convolution, and the grid that its kernels lie on."""

    name: str
    conv: nn.Conv2d
    layout: str
    pool_size: int
    pool_stride: int

    @property
    def kernels(self) -> int:
        return self.conv.out_channels

    @property
    def grid(self) -> tuple[int, ...]:
        return check_window(self.kernels, 1, 1, self.layout)

    @property
    def is_average(self) -> bool:
        return (self.pool_size, self.pool_stride) != (1, 1)

    @property
    def average(self) -> Average:
        return average_of(self.kernels, self.pool_size, self.pool_stride, self.layout)

    @property
    def identity(self) -> Average:
        return average_of(self.kernels, 1, 1, self.layout)

    def pairs(self, seed: int, after: bool = False) -> Pairs | None:
        """Return the pairs of the kernels before the average, or of those that it leaves."""
        return pairs_of(self.kernels, self.pool_stride if after else 1, self.layout, seed)

    def averaged(self, z: Tensor) -> Tensor:
        """Return A z along dimension 0, the fastest for an average."""
        return kernel_average(z, self.pool_size, stride=self.pool_stride, layout=self.layout, dim=0)

    @property
    def num_after(self) -> int:
        return pooled_channels(self.kernels, self.pool_stride, self.layout)

    @property
    def norm(self) -> _BatchNorm | None:
        """The norm between the convolution and the average, where the layer has one."""
        if not isinstance(self.conv, KAPConv2d):
            return None
        return next((module for module in self.conv.modules() if isinstance(module, _BatchNorm)), None)

    @property
    def scale(self) -> Tensor | None:
        """What that norm multiplies each kernel by in evaluation, (kernels,)."""
        if self.norm is None or self.norm.running_var is None:
            return None
        factor = (self.norm.running_var + self.norm.eps).rsqrt()
        return factor if self.norm.weight is None else factor * self.norm.weight

    def before_average(self, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
        """Return the responses W x + b, behind the norm if one stands before the average, at some places.

        They are computed from the stored weights, for a layer that averages does so in its weights. Any other
        convolution's are its output, whatever it makes of its weights.

        Shapes: x (batch, in_channels, height, width), output (batch, kernels after, height', width'), places
        (places,) of height' x width', to (batch * places, kernels).
        """
        if not self.is_average:
            return output.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)
        z = patches_product(self.conv, x, places, output.shape[3])
        return (
            z
            if self.norm is None
            else functional.batch_norm(
                z,
                self.norm.running_mean,
                self.norm.running_var,
                self.norm.weight,
                self.norm.bias,
                eps=self.norm.eps,
            )
        )


def patches_product(conv: nn.Conv2d, x: Tensor, places: Tensor, width: int) -> Tensor:
    """Return W x + b of a convolution at some places of its output, (batch * places, out_channels)."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    (high, wide), (down, right), (skip, over) = conv.kernel_size, conv.stride, conv.dilation
    parts = []
    for place in places.tolist():
        top, left = down * (place // width), right * (place % width)
        rows, columns = (
            slice(top, top + skip * (high - 1) + 1, skip),
            slice(left, left + over * (wide - 1) + 1, over),
        )
        parts.append(padded[:, :, rows, columns])
    patches = torch.stack(parts, dim=1).flatten(0, 1).unflatten(1, (conv.groups, -1)).flatten(2)
    weight = conv.weight.unflatten(0, (conv.groups, -1)).flatten(2)
    product = torch.einsum("pgi,goi->pgo", patches, weight).flatten(1)
    return product if conv.bias is None else product + conv.bias


def layers_of(model: nn.Module, layout: str) -> list[Layer]:
    """Return the convolutions of a network in the order of its modules.

    Args:
        layout: on which those that average nothing are laid.
    """
    return [
        layer_of(name, module, layout) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    ]


def layer_of(name: str, conv: nn.Conv2d, layout: str) -> Layer:
    if isinstance(conv, KAPConv2d) and (conv.pool_size, conv.pool_stride) != (1, 1):
        return Layer(name, conv, conv.layout, int(conv.pool_size), int(conv.pool_stride))
    return Layer(name, conv, layout, 1, 1)
