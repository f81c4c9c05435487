"""The three kinds of noise, and plain random noise that belongs to no kind."""

from __future__ import annotations

import math

import numpy as np

from kapdist.corruptions.pixels import Image, Values, to_bytes, to_values
from kapdist.records.attack_plan import Norm


def gaussian_noise(image: Image, std: float, random: np.random.Generator) -> Image:
    return to_bytes(to_values(image) + random.normal(0, std, image.shape))


def shot_noise(image: Image, photons: float, random: np.random.Generator) -> Image:
    return to_bytes(random.poisson(to_values(image) * photons) / photons)


def impulse_noise(image: Image, amount: float, random: np.random.Generator) -> Image:
    """Replace a share of the values, each channel for itself, by 0 or 255, as many of the one as of the other."""
    hit = random.random(image.shape) <= amount
    salt = random.random(image.shape) <= 0.5
    return np.where(hit, np.where(salt, 255, 0), image).astype(np.uint8)


def random_gaussian(values: Values, std: float, random: np.random.Generator) -> Values:
    """Add noise of a standard deviation to values in [0, 1]; they are clipped, and not rounded to 8 bits."""
    return np.clip(values + random.normal(0, std, values.shape), 0, 1)


def random_uniform(values: Values, norm: Norm, eps: float, random: np.random.Generator) -> Values:
    """Add noise of a norm: uniform in the Linf ball, or uniform in direction on the sphere of L2 or L1.

    Clipping to [0, 1] only brings the image nearer, so it stays within eps. One image at a time on threads of
    Python, where torch would start threads of its own: so it is NumPy's and not `attack.ball.Ball`'s.
    """
    if norm == "Linf":
        return np.clip(values + random.uniform(-eps, eps, values.shape), 0, 1)
    if norm == "L2":
        direction = random.normal(size=values.shape)
        return np.clip(values + eps * direction / math.sqrt((direction**2).sum()), 0, 1)
    direction = random.laplace(size=values.shape)  # proportional to exp(-|x|_1), so uniform on the L1 sphere
    return np.clip(values + eps * direction / np.abs(direction).sum(), 0, 1)
