"""Mixup (Zhang 2018, arXiv 1710.09412) and CutMix (Yun 2019, arXiv 1905.04899), on the device, keyed by step.

The share and the box are functions of (seed, step), the same on all ranks. An image's partner is found within its
part of the batch (the part in reverse), so partners, unlike all other augmentation, depend on the number of ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from kapdist.config import TrainConfig
from kapdist.rng import generator


class Mixed(NamedTuple):
    """Images, and the share of each image's own label; the rest is its partner's."""

    images: Tensor
    share: float


def mix(images: Tensor, config: TrainConfig, seed: int, step: int) -> Mixed:
    """Mix images (batch, 3, height, width) with their reverse; where both are on, each step takes one by chance."""
    draws = generator(seed, "mixing", step)
    cut = bool(config.cutmix_alpha) and (not config.mixup_alpha or draws.random() < 0.5)
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    if not alpha:
        return Mixed(images, 1.0)
    share = float(draws.beta(alpha, alpha))
    return cutmix(images, share, draws) if cut else Mixed(share * images + (1 - share) * images.flip(0), share)


def cutmix(images: Tensor, share: float, draws: np.random.Generator) -> Mixed:
    """Paste a box of the partner, of about (1 - share) of the area; the share becomes what is left in truth."""
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)
    top, bottom = box_side(height, side, draws)
    left, right = box_side(width, side, draws)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return Mixed(mixed, 1 - (bottom - top) * (right - left) / (height * width))


def box_side(length: int, side: float, draws: np.random.Generator) -> tuple[int, int]:
    centre, half = int(draws.integers(length)), int(length * side) // 2
    return max(0, centre - half), min(length, centre + half)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, share: float | Tensor, label_smoothing: float) -> Tensor:
    """Return the summed cross-entropy against labels and, for what is left of the share, their reverse.

    A share on the device, (2,), is followed by what is left of it.
    """
    own = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    if isinstance(share, float) and share == 1.0:
        return own
    other = F.cross_entropy(logits, labels.flip(0), reduction="sum", label_smoothing=label_smoothing)
    of_own, of_other = share.unbind() if isinstance(share, Tensor) else (share, 1 - share)
    return of_own * own + of_other * other
