"""Snow, frost, fog and brightness."""

from __future__ import annotations

import cv2
import numpy as np

from kapdist.corruptions.filters import magnified, motion
from kapdist.corruptions.frost import FrostSource
from kapdist.corruptions.pixels import Image, to_bytes, to_values
from kapdist.corruptions.plasma import plasma

SnowLevel = tuple[float, float, float, float, int, float, float]


def snow(image: Image, level: SnowLevel, random: np.random.Generator) -> Image:
    mean, std, zoom, threshold, radius, motion_std, share = level
    flakes = magnified(random.normal(mean, std, image.shape[:2])[..., None], zoom)[..., 0]
    flakes = to_bytes(np.where(flakes < threshold, 0, flakes)).astype(np.float64)
    flakes = np.rint(motion(flakes, radius, motion_std, random.uniform(-135, -45))) / 255
    values = to_values(image).astype(np.float32)
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    whitened = share * values + (1 - share) * np.maximum(values, (grey * 1.5 + 0.5)[..., None])
    return to_bytes(whitened + (flakes + np.rot90(flakes, 2))[..., None])


def frost(
    image: Image, level: tuple[float, float, float], random: np.random.Generator, source: FrostSource
) -> Image:
    own, other, scale = level
    layer = source.layer(image.shape[0], image.shape[1], scale, random)
    return to_bytes(own * to_values(image) + other * to_values(layer))


def fog(image: Image, level: tuple[float, float], random: np.random.Generator) -> Image:
    thickness, decay = level
    values = to_values(image)
    brightest = values.max()
    clouded = values + thickness * plasma(image.shape[0], image.shape[1], decay, random)[..., None]
    return to_bytes(clouded * brightest / (brightest + thickness))


def brightness(image: Image, added: float, random: np.random.Generator) -> Image:
    """Add to the value of HSV; hue and saturation stay, so channels grow by one factor, and black turns grey."""
    values = to_values(image)
    value = values.max(axis=2, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    return to_bytes(np.where(value > 0, values * (brighter / np.where(value > 0, value, 1)), brighter))
