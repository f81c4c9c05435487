"""The order of an epoch: one global permutation, whatever the number of ranks."""

from __future__ import annotations

import numpy as np

from kapdist import rng


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the image ids of an epoch in training order, (num_images,) int64.

    It depends on these three numbers alone; ranks, resumes and batches cut it, they never change it.
    """
    return rng.permutation(num_images, seed, "order", epoch)
