"""How many channels a stage has: powers of two, or squares, whose kernels fill a square sheet."""

import math
from collections.abc import Sequence
from typing import Literal

Widths = Literal["doubling", "squares"] | Sequence[int]
STAGES = 4
DOUBLING = 64  # channels of the first stage
SQUARES = (8, 12, 16, 23)  # sides of the stages' sheets: 64, 144, 256 and 529 kernels


def stage_channels(widths: Widths, width: float) -> list[int]:
    """Return the channels of the four stages of a ResNet (a bottleneck's last convolution has four times as many).

    Args:
        widths: "doubling" is 64, 128, 256, 512; "squares" is 64, 144, 256, 529, of which all, and four times all,
            are squares; or the four numbers themselves.
        width: scales the channels of the first two, see `scaled_channels` and `square_channels`.

    Raises: ValueError for a width not above 0, one other than 1 beside numbers, and no four numbers above 0.
    """
    if widths == "squares":
        return [square_channels(side, width) for side in SQUARES]
    if widths == "doubling":
        return [scaled_channels(DOUBLING, width) * 2**stage for stage in range(STAGES)]
    if isinstance(widths, str) or len(widths) != STAGES or not all(channels >= 1 for channels in widths):
        raise ValueError(f"widths must be doubling, squares or {STAGES} numbers of 1 or more, found {widths!r}")
    if width != 1:
        raise ValueError(f"width must be 1 beside widths in numbers, which are the channels, found {width}")
    return list(widths)


def scaled_channels(channels: int, width: float) -> int:
    """channels * width as a multiple of 8, at least 8: fast on vector units, and a sheet for KAP."""
    check_width(width)
    return max(8, round(channels * width / 8) * 8)


def square_channels(side: int, width: float) -> int:
    """side^2 * width as a square: the side is rounded, and at least 3, the sides of KAP's usual window."""
    check_width(width)
    return max(3, round(side * math.sqrt(width))) ** 2


def check_width(width: float) -> None:
    if not width > 0:
        raise ValueError(f"width must be above 0, found {width}")
