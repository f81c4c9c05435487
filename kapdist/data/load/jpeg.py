"""One JPEG to its pixels by simplejpeg, libjpeg-turbo without FFCV; a warning of it is damage."""

from __future__ import annotations

from typing import Any

import numpy as np

from kapdist.data.beton.layout import DamagedImageError


def decode_jpeg(stored: Any, image: int, rows: int, columns: int) -> np.ndarray:
    """Return (rows, columns * 3) uint8, decoded as libffcv does, at the scale that gives this size.

    Args:
        stored: bytes, or (bytes,) uint8.

    Raises:
        DamagedImageError: they are no such image, or not a whole one.
    """
    import simplejpeg

    try:
        decoded = simplejpeg.decode_jpeg(stored, fastdct=True, min_height=rows, min_width=columns)
    except ValueError as error:
        raise DamagedImageError(image) from error
    if decoded.shape != (rows, columns, 3):
        raise DamagedImageError(image)
    return decoded.reshape(rows, 3 * columns)
