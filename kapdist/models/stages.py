"""A stage of a residual network: blocks of one kind, of which the first changes the shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from kapdist.models.drop_path import drop_rates


@dataclass(frozen=True)
class BlockOptions:
    """What a block has beside its channels and its stride."""

    blurpool: bool
    dropout: float
    drop_path: float


Block = Callable[[int, int, int, BlockOptions], nn.Module]  # channels in and out, stride


def options_of_blocks(
    depths: Sequence[int], blurpool: bool, dropout: float, drop_path: float
) -> list[list[BlockOptions]]:
    """Return the options of each block, a list for each stage; the drop path alone differs between blocks."""
    return [[BlockOptions(blurpool, dropout, rate) for rate in rates] for rates in drop_rates(drop_path, depths)]


def stage(
    block: Block, in_channels: int, channels: int, stride: int, options: Sequence[BlockOptions], expansion: int = 1
) -> nn.Sequential:
    """A block for each of the options; `expansion` times `channels` leave each."""
    first = block(in_channels, channels, stride, options[0])
    rest = [block(channels * expansion, channels, 1, each) for each in options[1:]]
    return nn.Sequential(first, *rest)
