"""One image under one corruption: a pure function of the image, kind, severity, seed and the image's id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kapdist.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from kapdist.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from kapdist.corruptions.frost import FrostSource
from kapdist.corruptions.levels import level_of
from kapdist.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from kapdist.corruptions.pixels import Image
from kapdist.corruptions.weather import brightness, fog, frost, snow
from kapdist.rng import generator

FUNCTIONS: dict[str, Callable[..., Image]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}


def corrupt(
    image: Image, kind: str, severity: int, *, seed: int, image_id: int, frost_source: FrostSource | None = None
) -> Image:
    """Return an image, (height, width, 3), 8 bits RGB, under a corruption of Hendrycks & Dietterich (2019).

    Args:
        kind: one of KINDS.
        severity: 1 to 5.
        seed, image_id: with kind and severity they decide everything random.
        frost_source: default: the drawn pictures.

    Raises:
        ValueError: not an image of 8 bits RGB.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image (height, width, 3) of uint8, found {image.shape} of {image.dtype}")
    random = generator(seed, "corruption", kind, severity, image_id)
    level = level_of(kind, severity, image.shape[0], image.shape[1])
    more: tuple[Any, ...] = (frost_source or FrostSource(),) if kind == "frost" else ()
    return FUNCTIONS[kind](image, level, random, *more)
