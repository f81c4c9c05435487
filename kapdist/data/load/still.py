"""One decoded image as evaluations see it, without a beton: the same crop and the same resize, in the same code."""

from __future__ import annotations

import numpy as np

from kapdist.config.fields import Interpolation
from kapdist.data.load.pixels import CENTRE_CROP, FULL, NO_CROP, Recipe
from kapdist.data.load.resample import AREA, INTERPOLATIONS, compiled_resample
from kapdist.data.load.simplejpeg import compiled_functions


def still(
    pixels: np.ndarray, side: int, crop: str, crop_ratio: float, interpolation: Interpolation = "area"
) -> np.ndarray:
    """Return an image, (height, width, 3) uint8, as (side, side, 3).

    Args:
        crop: as the config says it: none resizes the whole image; otherwise it is the centre crop of evaluations.
        crop_ratio: share of the shorter side that the centre crop keeps.
        interpolation: area crops and then resizes; the others go as Pillow does, and of an image that is not square
            leave its middle even with crop none.
    """
    recipe = Recipe(NO_CROP) if crop == "none" else Recipe(CENTRE_CROP, centre_ratio=crop_ratio)
    height, width = pixels.shape[:2]
    source = np.array(pixels, order="C").reshape(height, width * 3)
    source.flags.writeable = False
    plain, out = (np.empty((side, side, 3), np.uint8) for _ in range(2))
    if (kind := INTERPOLATIONS[interpolation]) != AREA:
        compiled_resample()(source, kind, recipe.centre_ratio, out)
        return out
    options = recipe.crop, recipe.centre_ratio, recipe.pad, recipe.flip, recipe.cutout
    compiled_functions()[1](source, FULL, 0, 0, height, width, *options, plain, out)
    return out
