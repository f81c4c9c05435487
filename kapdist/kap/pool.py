"""Kernel Average Pooling as a layer of its own: the activation form."""

from torch import Tensor, nn

from kapdist.kap.average import kernel_average


class KernelAveragePool(nn.Module):
    """Averages neighbouring channels of activations (batch, channels, ...).

    Its cost grows with batch x pixels; after a convolution `KAPConv2d` gives the same result for a cost that
    grows with parameters. Use this one where no convolution precedes.

    Shapes: (batch, C, ...) to (batch, C', ...), see `kernel_average` for C'.
    Raises: ValueError at the first call where the window does not fit C.
    """

    def __init__(self, pool_size: int, *, stride: int = 1, layout: str = "sheet") -> None:
        super().__init__()
        self.pool_size = pool_size
        self.stride = stride
        self.layout = layout

    def forward(self, z: Tensor) -> Tensor:
        return kernel_average(z, self.pool_size, stride=self.stride, layout=self.layout, dim=1)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}, stride={self.stride}, layout={self.layout}"
