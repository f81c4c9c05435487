"""Decoding as torchvision's datasets decode: Pillow, then convert("RGB"), and nothing else.

That is torchvision/datasets/folder.py's pil_loader: transparency is dropped, an EXIF orientation is not applied.
Where it would give pixels that nobody wants (16 bits a channel clipped to white), the image is refused instead.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
DEEP_MODES = ("I", "F")  # Pillow's names of modes with more than 8 bits begin so


class UnreadableImageError(Exception):
    """An image of a source cannot be decoded; the message says why."""


def decode_image(content: bytes) -> np.ndarray:
    """Return an image file's pixels, (height, width, 3) uint8 RGB; the first frame of an animation.

    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(DEEP_MODES):
                raise UnreadableImageError(f"pixels of more than 8 bits (Pillow's mode {image.mode})")
            return np.asarray(image.convert("RGB"))
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImageError(reason(error)) from error


def reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    # The name of an object in memory helps nobody.
    text = "cannot identify the format" if "cannot identify image file" in text else text
    return f"{type(error).__name__}: {text}"


def is_image_name(name: str) -> bool:
    """Tell by its extension whether a file is an image, whatever its bytes are; not those of other systems."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".")
