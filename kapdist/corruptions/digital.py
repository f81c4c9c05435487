"""Contrast, elastic transform, pixelate and JPEG compression."""

from __future__ import annotations

import io

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kapdist.corruptions.filters import REFLECT, gaussian, sampled
from kapdist.corruptions.pixels import Image, to_bytes, to_values


def contrast(image: Image, factor: float, random: np.random.Generator) -> Image:
    values = to_values(image)
    mean = values.mean(axis=(0, 1), keepdims=True)
    return to_bytes((values - mean) * factor + mean)


def elastic_transform(image: Image, level: tuple[float, float, float], random: np.random.Generator) -> Image:
    """Shift the corners of a square at random, and every pixel by a smooth random field (Simard et al. 2003)."""
    displacement, smoothness, shift = level
    values = shifted_corners(to_values(image).astype(np.float32), shift, random)
    height, width = image.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    across, down = (
        gaussian(random.uniform(-1, 1, (height, width)), smoothness, REFLECT, truncate=3) * displacement
        for _ in range(2)
    )
    return to_bytes(sampled(values, rows + down, columns + across))


def shifted_corners(values: NDArray[np.float32], shift: float, random: np.random.Generator) -> NDArray[np.floating]:
    height, width = values.shape[:2]
    centre, reach = np.array([width // 2, height // 2], dtype=np.float32), min(height, width) // 3
    corners = np.array([centre + reach, centre + np.array([reach, -reach]), centre - reach], dtype=np.float32)
    moved = corners + random.uniform(-shift, shift, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    return np.asarray(
        cv2.warpAffine(values, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101), np.float32
    )


def pixelate(image: Image, share: float, random: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    shrunk = PIL.Image.fromarray(image).resize(small, PIL.Image.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), PIL.Image.Resampling.BOX))


def jpeg_compression(image: Image, quality: int, random: np.random.Generator) -> Image:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file).convert("RGB"))
