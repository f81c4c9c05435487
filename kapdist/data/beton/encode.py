"""How one image is stored: its own JPEG bytes where they will do, else a fresh JPEG, pixels or planes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from PIL import Image

from kapdist.data.beton.layout import JPEG, RAW, YCBCR, DamagedImageError, planes_bytes
from kapdist.data.load.jpeg import decode_jpeg
from kapdist.data.load.ycbcr import planes
from kapdist.data.sources.base import FileSource, Source
from kapdist.data.sources.image import UnreadableImageError, decode_image
from kapdist.errors import InputError

SMALLEST_PAGE, LARGEST_PAGE = 1 << 21, 1 << 25  # bytes; no stored image can be larger than its page
LARGEST_SIDE = 65535  # the file format's, and JPEG's
CHECK_SCALE = 8  # libjpeg-turbo reads the whole file at any scale, and computes least at an eighth
QUALITY = 90  # where nothing is said

Store = Literal["raw", "jpeg", "ycbcr"]


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    max_side: larger images are shrunk to this longer side, pixels (OpenCV INTER_AREA, as FFCV does).
    jpeg_quality: 1 to 100 stores JPEG; None stores what `store` says.
    jpeg_share: share of the images that become JPEG, the others stay raw (FFCV's mode `proportion`).
    raw_up_to_bytes: images with at most so many bytes of pixels stay raw (FFCV's mode `smart`).
    store: raw pixels, JPEG (of quality 90 if none is said) or planes of YCbCr 4:2:0, which FFCV does not know; None
        is JPEG where there is a quality, else raw.
    """

    max_side: int | None = None
    jpeg_quality: int | None = None
    jpeg_share: float = 1.0
    raw_up_to_bytes: int = 0
    store: Store | None = None

    def check(self) -> None:
        """Raise InputError where a value is out of bounds, or two do not go together."""
        if self.store is not None and self.store not in get_args(Store):
            raise InputError("--store", ", ".join(get_args(Store)), str(self.store))
        of_jpeg = {
            "--jpeg-quality": self.jpeg_quality is not None,
            "--jpeg-share": self.jpeg_share != 1,
            "--raw-up-to-bytes": self.raw_up_to_bytes > 0,
        }
        for key in [key for key, said in of_jpeg.items() if said and self.store in ("raw", "ycbcr")]:
            raise InputError(f"--store {self.store}", f"no {key}, which is of JPEG", "one")
        if self.max_side is not None and not 1 <= self.max_side <= LARGEST_SIDE:
            raise InputError("max side", f"1 to {LARGEST_SIDE} pixels", str(self.max_side))
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError("JPEG quality", "1 to 100", str(self.jpeg_quality))
        if not 0 <= self.jpeg_share <= 1:
            raise InputError("JPEG share", "0 to 1", str(self.jpeg_share))
        if self.raw_up_to_bytes < 0:
            raise InputError("raw up to bytes", "0 or more", str(self.raw_up_to_bytes))

    @property
    def quality(self) -> int | None:
        """JPEG's; None where no image becomes one."""
        return QUALITY if self.store == "jpeg" and self.jpeg_quality is None else self.jpeg_quality

    def as_jpeg(self, index: int, height: int, width: int) -> bool:
        """Tell whether an image of that size is stored as JPEG; by lot the same one whoever asks."""
        if self.quality is None or 3 * height * width <= self.raw_up_to_bytes:
            return False
        lot = int.from_bytes(hashlib.blake2b(index.to_bytes(8, "little"), digest_size=7).digest(), "little")
        return lot < self.jpeg_share * 256**7

    def page_size(self, source: Source) -> int:
        """Return the smallest page that holds any image of the source."""
        bounds = [bound for bound in (source.largest_bytes, self.max_side and 3 * self.max_side**2) if bound]
        bound = min(bounds, default=LARGEST_PAGE)
        return min(LARGEST_PAGE, max(SMALLEST_PAGE, 1 << (bound - 1).bit_length()))

    def words(self) -> str:
        """Return what a manifest calls this."""
        if self.quality is None:
            return "ycbcr 4:2:0" if self.store == "ycbcr" else "raw"
        share = f", {self.jpeg_share:g} of the images" if self.jpeg_share < 1 else ""
        small = f", raw up to {self.raw_up_to_bytes} bytes" if self.raw_up_to_bytes else ""
        return f"jpeg quality {self.quality}{share}{small}"


@dataclass(frozen=True)
class Stored:
    """An image as it goes into the file."""

    content: Any  # bytes, or (bytes,) uint8
    mode: int
    height: int
    width: int
    kept: bool  # the source's own bytes
    label: int


def encode(source: Source, index: int, encoding: Encoding, page_size: int) -> Stored:
    """Return an image as it will be stored.

    Raises:
        UnreadableImageError: it cannot be read, or is too large.
    """
    if not isinstance(source, FileSource):
        return encode_pixels(*source.item(index), index, encoding, page_size)
    content, label = source.content(index), int(source.labels[index])
    size = jpeg_size(content)
    fits = size and max(size) <= (encoding.max_side or LARGEST_SIDE) and len(content) <= page_size
    if size and fits and encoding.as_jpeg(index, *size) and decodes(content, index, *size):
        return Stored(content, JPEG, *size, True, label)
    return encode_pixels(decode_image(content), label, index, encoding, page_size)


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a grey or three-colour JPEG; None for what FFCV cannot keep as it is."""
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            return (image.height, image.width) if image.mode in ("RGB", "L") else None
    except Exception:  # decode_image will say why
        return None


def decodes(content: bytes, index: int, height: int, width: int) -> bool:
    """Tell whether libjpeg-turbo reads a JPEG to its end without a warning: a loader takes warnings for damage."""
    try:
        decode_jpeg(content, index, -(-height // CHECK_SCALE), -(-width // CHECK_SCALE))
    except DamagedImageError:
        return False
    return True


def encode_pixels(image: np.ndarray, label: int, index: int, encoding: Encoding, page_size: int) -> Stored:
    image = shrunk(image, encoding.max_side)
    height, width = image.shape[:2]
    mode = YCBCR if encoding.store == "ycbcr" else JPEG if encoding.as_jpeg(index, height, width) else RAW
    size = {JPEG: 0, RAW: image.nbytes, YCBCR: planes_bytes(height, width)}[mode]
    if max(height, width) <= LARGEST_SIDE and size <= page_size:
        content = encoded(image, mode, encoding.quality or QUALITY)
        if len(content) <= page_size:
            return Stored(content, mode, height, width, False, label)
    raise UnreadableImageError(f"{height} x {width} pixels are more than a beton can hold; use a maximum side")


def encoded(image: np.ndarray, mode: int, quality: int) -> np.ndarray:
    if mode == YCBCR:
        return planes(image)
    return encode_jpeg(image, quality) if mode == JPEG else image.reshape(-1)


def shrunk(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """Return an image with at most this longer side, by FFCV's rule (ffcv/fields/rgb_image.py, `resizer`)."""
    height, width = image.shape[:2]
    ratio = (max_side or LARGEST_SIDE) / max(height, width)
    if max_side is None or ratio >= 1:
        return np.ascontiguousarray(image)
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def encode_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    done, content = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise UnreadableImageError("OpenCV cannot make a JPEG of it")
    return content.reshape(-1)
