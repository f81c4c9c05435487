"""Stochastic depth: in training an image skips blocks by chance."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class DropPath(nn.Module):
    """A block's residual branch, of each image of a batch: zero by chance, else divided by the chance to be kept.

    So its expectation is the branch itself, which is what evaluation computes. Huang et al. leave out a block for
    the whole batch and scale in evaluation; one draw for each image is torchvision's and timm's form. The draws are
    from torch's own stream, as dropout's are.

    Shapes: (batch, channels, height, width), kept.
    Raises: ValueError for a rate that is not in [0, 1).
    Source: Huang et al. 2016, arXiv 1603.09382, section 3.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, found {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * functional.dropout(x.new_ones((x.shape[0], 1, 1, 1)), self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_path(rate: float) -> nn.Module:
    """What stands at the end of a residual branch: a DropPath, or nothing."""
    return DropPath(rate) if rate else nn.Identity()


def drop_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the rate of each block, a list for each stage: rising evenly to that of the network's last block.

    Source: Huang et al. 2016, arXiv 1603.09382, equation 4 (linear decay of the chance to survive).
    """
    count = sum(depths)
    rates = [last * (block + 1) / count for block in range(count)]
    return [rates[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(len(depths))]
