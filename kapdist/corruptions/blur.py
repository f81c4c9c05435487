"""The four kinds of blur."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from kapdist.corruptions.filters import gaussian, magnified, motion
from kapdist.corruptions.pixels import Image, to_bytes, to_values


def defocus_blur(image: Image, level: tuple[float, float], random: np.random.Generator) -> Image:
    return to_bytes(np.asarray(cv2.filter2D(to_values(image), -1, disk(*level)), np.float64))


def disk(radius: float, edge_std: float) -> NDArray[np.float32]:
    """Return the kernel of a lens out of focus: a disk whose edge is softened, at least 17 pixels wide."""
    reach = 8 if radius <= 8 else int(radius)
    side = np.arange(-reach, reach + 1)
    inside = (side[:, None] ** 2 + side[None] ** 2 <= radius**2).astype(np.float32)
    edge = 3 if radius <= 8 else 5
    return np.asarray(cv2.GaussianBlur(inside / inside.sum(), (edge, edge), edge_std), np.float32)


def glass_blur(image: Image, level: tuple[float, int, int], random: np.random.Generator) -> Image:
    std, distance, rounds = level
    scattered = to_bytes(gaussian(to_values(image), std))
    for _ in range(rounds):
        scattered = scatter(scattered, distance, random)
    return to_bytes(gaussian(to_values(scattered), std))


def scatter(image: Image, distance: int, random: np.random.Generator) -> Image:
    """Give pixels, from the last to the first, the value that a pixel nearby has by then.

    The authors' script means to swap the two, but overwrites the first before it reads it for the second; the
    published sets were made so. Pixels that took the value of an earlier one form chains, which are followed by
    doubling in place of a loop over pixels.
    """
    height, width = image.shape[:2]
    rows = np.arange(height - distance, distance, -1)
    columns = np.arange(width - distance, distance, -1)
    if not rows.size or not columns.size:
        return image
    shifts = random.integers(-distance, distance, (rows.size, columns.size, 2))
    here = rows[:, None] * width + columns[None]
    there = here + shifts[..., 1] * width + shifts[..., 0]
    pixels = height * width
    source = np.arange(pixels)
    source[here] = there
    done = np.zeros(pixels, dtype=bool)
    done[here] = True
    # A pixel's number stands for what it becomes, and `pixels` more for what it was.
    places = np.arange(pixels)
    becomes = np.where(done[source] & (source > places), source, source + pixels)
    chain = np.concatenate([np.where(done, becomes, places + pixels), places + pixels])
    while not np.array_equal(further := chain[chain], chain):
        chain = further
    return image.reshape(pixels, -1)[chain[:pixels] - pixels].reshape(image.shape)


def motion_blur(image: Image, level: tuple[int, float], random: np.random.Generator) -> Image:
    radius, std = level
    smeared = motion(image.astype(np.float64), radius, std, random.uniform(-45, 45))
    return np.rint(smeared).astype(np.uint8)


def zoom_blur(image: Image, level: tuple[float, float], random: np.random.Generator) -> Image:
    stop, step = level
    values = to_values(image).astype(np.float32)
    factors = np.arange(1, stop, step)
    total = values + sum(magnified(values, float(factor)) for factor in factors)
    return to_bytes(total / (len(factors) + 1))
