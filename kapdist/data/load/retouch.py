"""What is done to images after they are decoded, by the same threads and for either backend alike.

Machine code of its own, so that whoever asks for none of it compiles none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kapdist.data.load.erase import compiled_erase
from kapdist.data.load.pixels import Recipe
from kapdist.data.load.rand_augment import compiled_rand_augment

Retouch = Callable[[np.ndarray, np.ndarray, int], None]


def make_retouch(recipe: Recipe) -> Retouch:
    """Return f(image ids, pixels (batch, side, side, 3) uint8, epoch's key), which changes pixels in place."""
    steps: list[Retouch] = []
    if recipe.num_operations:
        rand_augment = compiled_rand_augment()
        steps.append(lambda *part: rand_augment(*part, recipe.num_operations, recipe.magnitude))
    if recipe.late_cutout or recipe.erasing:
        erase = compiled_erase()
        steps.append(lambda *part: erase(*part, recipe.late_cutout, recipe.erasing))

    def retouch(images: np.ndarray, pixels: np.ndarray, key: int) -> None:
        for step in steps:
            step(images, pixels, key)

    return retouch
