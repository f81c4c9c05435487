"""The order of an epoch: one global permutation, whatever the number of ranks."""

from __future__ import annotations

import numpy as np

from kapdist import rng
from kapdist.config import DataConfig
from kapdist.plan.training import OPEN_PAGES


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the image ids of an epoch in training order, (num_images,) int64.

    It depends on these three numbers alone; ranks, resumes and batches cut it, they never change it.
    """
    return rng.permutation(num_images, seed, "order", epoch)


def quasi_random_order(num_images: int, seed: int, epoch: int, page_images: int) -> np.ndarray:
    """Return the image ids of an epoch in an order that opens few pages at a time, (num_images,) int64.

    Pages are runs of page_images consecutive images, the last one may be shorter. They are permuted, and the
    images of OPEN_PAGES at a time are shuffled together: at any place of the order at most OPEN_PAGES pages have
    been begun and not finished. Ranks, resumes and batches cut it, they never change it.
    """
    page = np.arange(num_images) // page_images
    num_pages = -(-num_images // page_images)
    window = rng.permutation(num_pages, seed, "pages", epoch) // OPEN_PAGES
    # A stable sort of a permutation by window: every order within a window stays equally likely.
    shuffled = rng.permutation(num_images, seed, "images within pages", epoch)
    return shuffled[np.argsort(window[page[shuffled]], kind="stable")]


def training_order(
    config: DataConfig, num_images: int, seed: int, epoch: int, order: str | None = None
) -> np.ndarray:
    """Return the image ids of an epoch, (num_images,) int64, in the order of the plan, else the config's."""
    if (order or config.order) == "quasi-random":
        return quasi_random_order(num_images, seed, epoch, config.page_images)
    return epoch_order(num_images, seed, epoch)
