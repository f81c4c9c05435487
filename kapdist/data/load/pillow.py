"""Images as torchvision and timm evaluate on them, for either backend: Pillow decodes, centre_resample resizes."""

from __future__ import annotations

import numpy as np

from kapdist.data.beton.checksum import compiled_checksum
from kapdist.data.beton.layout import JPEG, YCBCR
from kapdist.data.load.pixels import Recipe
from kapdist.data.load.resample import compiled_resample
from kapdist.data.load.ycbcr import rgb
from kapdist.data.sources.image import UnreadableImageError, decode_image


def compile_resampling() -> None:
    """Have ready what the threads of a loader will call."""
    compiled_resample()
    compiled_checksum()


def resample(stored: np.ndarray, mode: int, shape: tuple[int, int], recipe: Recipe, out: np.ndarray) -> bool:
    """Bring the stored bytes of an image, (height, width) by its beton, into out (side, side, 3) uint8.

    Pillow's exact transform, not the fast one of the loader, which is a few levels away.

    Returns:
        Whether they are such an image.
    """
    height, width = shape
    source = rgb(stored, height, width) if mode == YCBCR else stored
    if mode == JPEG:
        try:
            source = decode_image(stored.tobytes())
        except UnreadableImageError:
            return False
        if source.shape != (height, width, 3):
            return False
    source = source.reshape(height, 3 * width)
    source.flags.writeable = False
    compiled_resample()(source, recipe.interpolation, recipe.centre_ratio, out)
    return True
