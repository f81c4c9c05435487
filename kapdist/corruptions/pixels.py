"""Between images of 8 bits, (height, width, 3), and values in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Values = NDArray[np.float64]

# Of a level: an integer that arithmetic has left just below itself does not fall to the next one.
ROUNDING = 1e-4


def to_values(image: Image) -> Values:
    return image / 255.0


def to_bytes(values: NDArray[np.floating]) -> Image:
    """Clip to [0, 1] and drop what is behind the point of 255 times it, as the published sets were made."""
    return np.floor(np.clip(values, 0, 1) * 255 + ROUNDING).astype(np.uint8)
