"""A convolution, Kernel Average Pooling and activation noise, for the price of the convolution and the draw."""

import math
import numbers
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kapdist.kap.average import check_window, kernel_average, pooled_channels
from kapdist.kap.noise import NoiseSource, NoisyLayer, draw_noise


def check_noise_std(noise_std: float) -> None:
    """Raises: ValueError for what is no finite number of at least 0."""
    is_number = isinstance(noise_std, numbers.Real) and not isinstance(noise_std, bool)
    if not is_number or not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be a standard deviation of at least 0, found {noise_std!r}")


class KAPConv2d(NoisyLayer, nn.Conv2d):
    """nn.Conv2d, the mean over neighbouring output channels, then activation noise: A (W x + b) + n.

    A W and A b are averaged before the convolution (A is linear and acts on output channels alone), so the
    cost of A grows with parameters, not with batch x pixels. Only where W is grouped must the activations be
    averaged, because A mixes the groups. The noise n ~ N(0, noise_std^2) is white, of the output's shape, and
    has no gradient; `kapdist.kap.noise` says when and from which generator it is drawn.

    The state_dict's keys and shapes are nn.Conv2d's: what is stored is W, not A W. With pool_size 1 and
    noise_std 0 it computes bitwise what nn.Conv2d computes.

    Shapes: (batch, in_channels, height, width) to (batch, C', height', width'), where C' is out_channels
    at pool_stride 1; see `kernel_average` for other strides. One image (in_channels, height, width) will do.
    Raises: ValueError for a window or a stride that does not fit out_channels, an unknown layout and a
    noise_std that is no standard deviation.
    """

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
    ) -> None:
        check_window(out_channels, pool_size, pool_stride, layout)
        check_noise_std(noise_std)
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
        self.noise_std = noise_std
        self.noise_source = NoiseSource()
        self.noise_layer = 0

    @property
    def pooled_channels(self) -> int:
        """The number of channels that leave this layer."""
        return pooled_channels(self.out_channels, self.pool_stride, self.layout)

    def average(self, z: Tensor, dim: int) -> Tensor:
        """A z along `dim`, which has out_channels entries."""
        return kernel_average(z, self.pool_size, stride=self.pool_stride, layout=self.layout, dim=dim)

    def averaged_parameters(self) -> tuple[Tensor, Tensor | None]:
        """A W and A b."""
        return self.average(self.weight, dim=0), None if self.bias is None else self.average(self.bias, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # one image: nn.Conv2d takes it, and its channels are not dimension 1
            return self.forward(x[None]).squeeze(0)
        return self._add_noise(self._averaged(x))

    def _averaged(self, x: Tensor) -> Tensor:
        if self.groups > 1:
            return self.average(self._conv_forward(x, self.weight, self.bias), dim=1)
        return self._conv_forward(x, *self.averaged_parameters())

    @property
    def has_noise(self) -> bool:
        return self.noise_std > 0

    def silence(self) -> None:
        self.noise_std = 0.0

    def _add_noise(self, z: Tensor) -> Tensor:
        if not self.is_noisy():
            return z
        return z.add(draw_noise(self.noise_source, z, self.noise_layer), alpha=self.noise_std)

    def extra_repr(self) -> str:
        pool = f"pool_size={self.pool_size}, pool_stride={self.pool_stride}, layout={self.layout}"
        return f"{super().extra_repr()}, {pool}, noise_std={self.noise_std}"
