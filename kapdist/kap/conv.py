"""A convolution, Kernel Average Pooling and activation noise, for the price of the convolution and the draw."""

import math
import numbers
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kapdist.kap.ahead import averages_of
from kapdist.kap.average import check_window, kernel_average, pooled_channels
from kapdist.kap.noise import NoiseSource, NoisyLayer, add_noise
from kapdist.kap.normed import normed_average, pays, window_of
from kapdist.kap.norms import PLAIN


def check_noise_std(noise_std: float) -> None:
    """Raises: ValueError for what is no finite number of at least 0."""
    is_number = isinstance(noise_std, numbers.Real) and not isinstance(noise_std, bool)
    if not is_number or not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be a standard deviation of at least 0, found {noise_std!r}")


def check_inner_norm(norm: nn.Module | None, channels: int, pool_size: int) -> None:
    """Raises: ValueError for what is no batch norm of so many channels, and for one where nothing is averaged."""
    if norm is None:
        return
    if not isinstance(norm, PLAIN) or norm.num_features != channels:
        raise ValueError(f"the inner norm must be a batch norm of {channels} channels, found {norm!r}")
    if pool_size == 1:
        raise ValueError("an inner norm stands before an average: pool_size must be above 1, found 1")


class KAPConv2d(NoisyLayer, nn.Conv2d):
    """nn.Conv2d, the mean over neighbouring output channels, then activation noise: A (W x + b) + n.

    A W and A b are averaged before the convolution (A is linear and acts on output channels alone), so the
    cost of A grows with parameters, not with batch x pixels. Only where W is grouped must the activations be
    averaged, because A mixes the groups. The noise n ~ N(0, noise_std^2) is white, of the output's shape, and
    has no gradient; `kapdist.kap.noise` says when and from which generator it is drawn.

    With an `inner_norm` (the authors' networks for ImageNet) it stands between convolution and average:
    A norm(W x + b) + n. While it takes the statistics of the batch, activations are made, normalised and
    averaged; where its statistics are frozen (eval mode) norm and average go into W and b.

    The state_dict's keys and shapes are nn.Conv2d's, and the inner norm's behind `inner_norm.`: what is stored
    is W, not A W. With pool_size 1 and noise_std 0 it computes bitwise what nn.Conv2d computes.

    Shapes: (batch, in_channels, height, width) to (batch, C', height', width'), where C' is out_channels
    at pool_stride 1; see `kernel_average` for other strides. One image (in_channels, height, width) will do.
    Raises: ValueError for a window or a stride that does not fit out_channels, an unknown layout, a noise_std
    that is no standard deviation, and an inner norm of other channels or where nothing is averaged.
    """

    inner_norm: nn.BatchNorm2d | nn.SyncBatchNorm | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        pool_size: int = 3,
        pool_stride: int = 1,
        layout: str = "sheet",
        noise_std: float = 0.0,
        inner_norm: nn.BatchNorm2d | nn.SyncBatchNorm | None = None,
    ) -> None:
        check_window(out_channels, pool_size, pool_stride, layout)
        check_noise_std(noise_std)
        check_inner_norm(inner_norm, out_channels, pool_size)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.pool_size = pool_size
        self.pool_stride = pool_stride
        self.layout = layout
        self.noise_std = float(noise_std)
        self.register_module("inner_norm", inner_norm)
        self.noise_source = NoiseSource()
        self.noise_layer = 0

    @property
    def pooled_channels(self) -> int:
        """The number of channels that leave this layer."""
        return pooled_channels(self.out_channels, self.pool_stride, self.layout)

    def average(self, z: Tensor, dim: int) -> Tensor:
        """A z along `dim`, which has out_channels entries."""
        return kernel_average(z, self.pool_size, stride=self.pool_stride, layout=self.layout, dim=dim)

    @property
    def is_frozen(self) -> bool:
        """Whether what comes before the average depends on no batch: no inner norm, or one with statistics."""
        norm = self.inner_norm
        return norm is None or (not norm.training and norm.running_mean is not None)

    def normed_parameters(self) -> tuple[Tensor, Tensor | None]:
        """W and b with the inner norm's statistics taken in: D W and D (b - mean) + its own bias."""
        norm = self.inner_norm
        if norm is None:
            return self.weight, self.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        bias = (-norm.running_mean if self.bias is None else self.bias - norm.running_mean) * scale
        bias = bias if norm.bias is None else bias + norm.bias
        return (self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype), bias.to(self.weight.dtype)

    def averaged_parameters(self) -> tuple[Tensor, Tensor | None]:
        """A W and A b, of W and b with the inner norm taken in."""
        ahead = averages_of(self, self.weight)
        if ahead is not None:
            return ahead
        weight, bias = self.normed_parameters()
        return self.average(weight, dim=0), None if bias is None else self.average(bias, dim=0)

    @property
    def averages_its_weight(self) -> bool:
        """Whether W and b themselves are what is averaged, in every pass."""
        return self.inner_norm is None and self.groups == 1 and self.pool_size * self.pool_stride > 1

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # one image: nn.Conv2d takes it, and its channels are not dimension 1
            return self.forward(x[None]).squeeze(0)
        if self.inner_norm is not None and not self.is_frozen:
            return self._normed(self._conv_forward(x, self.weight, self.bias), self.inner_norm)
        return self._add_noise(self._averaged(x))

    def _normed(self, z: Tensor, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Tensor:
        """A norm(z) + n, where the norm takes the batch's statistics."""
        if not pays(norm, z, self.pool_size, self.pool_stride):
            return self._add_noise(self.average(norm(z), dim=1))
        window = window_of(self.out_channels, self.pool_size, self.layout)
        if not self.is_noisy() or self.noise_source.mode != "fresh":
            return self._add_noise(normed_average(norm, z, window, None))
        stream = self.noise_source.streams.stream(self.noise_layer, z.device)
        return normed_average(norm, z, window, (self.noise_std, stream))

    def _averaged(self, x: Tensor) -> Tensor:
        if self.groups > 1:
            return self.average(self._conv_forward(x, *self.normed_parameters()), dim=1)
        return self._conv_forward(x, *self.averaged_parameters())

    @property
    def has_noise(self) -> bool:
        return self.noise_std > 0

    def silence(self) -> None:
        self.noise_std = 0.0

    def _add_noise(self, z: Tensor) -> Tensor:
        if not self.is_noisy():
            return z
        return add_noise(self.noise_source, z, self.noise_std, self.noise_layer)

    def extra_repr(self) -> str:
        pool = f"pool_size={self.pool_size}, pool_stride={self.pool_stride}, layout={self.layout}"
        return f"{super().extra_repr()}, {pool}, noise_std={self.noise_std}"
