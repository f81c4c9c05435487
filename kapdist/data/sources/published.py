"""Sets of corrupted and of unusual images as their authors publish them: cells of images that a model is shown.

A cell is one corruption at one severity; every cell of a set has the same images under the same names, so a choice
of images is one for all cells. Sets of photographs (ImageNet-A and its like) have one cell, of severity 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from kapdist.data.sources.folder import read_bytes
from kapdist.data.sources.image import UnreadableImageError, decode_image
from kapdist.errors import InputError

NATURAL = "photographs"  # the kind of the one cell of a set that nobody corrupted
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Published beside the fifteen for choosing hyperparameters; no mean counts them (Hendrycks & Dietterich 2019)."""


class PublishedSet(ABC):
    """One set in its folder."""

    name: ClassVar[str]
    title: ClassVar[str]
    published_images: ClassVar[int]
    """Of a cell, as published."""
    kinds: ClassVar[tuple[str, ...]]
    """Those that the set's mean counts; of photographs the one cell."""
    extra: ClassVar[tuple[str, ...]] = ()
    """Others that it may have."""
    side: ClassVar[int | None] = None
    """Pixels of every image, which is shown as it is; None: of any size, cropped and resized as in evaluations."""
    masked: ClassVar[bool] = False
    """Only the classes of the set count: the logits of all others are masked, as its authors do."""

    place: Path
    labels: np.ndarray
    """(images,) int64, of `class_names`, or the numbers themselves where those have no names."""
    class_names: tuple[str, ...] | None
    all_class_names: tuple[str, ...]
    """The data set's classes in its own order, () where only their number is known."""
    num_classes: int
    """Of the data set."""

    @abstractmethod
    def __init__(self, place: Path, kinds: Sequence[str], severities: Sequence[int]) -> None:
        """Take the set in a folder; raise InputError for what its layout lacks of these kinds and severities.

        Args:
            kinds: none: those of the mean that are there.
        """

    @classmethod
    def wnids(cls) -> tuple[str, ...]:
        """Return the classes that the set always has, sorted; () where that is not fixed."""
        return ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def there(self) -> tuple[str, ...]:
        """Return the kinds that the folder has, those of the mean first."""

    def counted_there(self) -> tuple[str, ...]:
        """Return those of the mean that the folder has.

        Raises:
            InputError: there are none.
        """
        found = tuple(kind for kind in self.there() if kind in self.kinds)
        if not found:
            raise InputError(self.place, f"{self.title}: {', '.join(self.kinds[:3])} and so on", "none of them")
        return found

    @abstractmethod
    def image_name(self, kind: str, severity: int, index: int) -> str:
        """Return what a message calls an image: its file, and where that holds several its place."""

    @abstractmethod
    def size(self, kind: str, severity: int, index: int) -> int:
        """Return the bytes of an image's file.

        Raises:
            InputError: there is none.
        """

    @abstractmethod
    def content(self, kind: str, severity: int, index: int) -> bytes:
        """Return an image as it lies there; raise UnreadableImageError."""

    @abstractmethod
    def decode(self, content: bytes) -> np.ndarray:
        """Return (height, width, 3) uint8 RGB; raise UnreadableImageError."""

    def image(self, kind: str, severity: int, index: int) -> tuple[np.ndarray, bytes]:
        """Return an image's pixels, (height, width, 3) uint8 RGB, and the bytes that they were made from.

        Raises:
            InputError: names the file that cannot be read, or whose image is not of the set's size.
        """
        place = self.place / self.image_name(kind, severity, index)
        try:
            content = self.content(kind, severity, index)
            pixels = self.decode(content)
        except UnreadableImageError as error:
            raise InputError(place, f"an image of {self.title}", str(error)) from None
        if self.side is not None and pixels.shape != (self.side, self.side, 3):
            expected = f"{self.side} x {self.side} pixels, as {self.title} is published"
            raise InputError(place, expected, f"{pixels.shape[0]} x {pixels.shape[1]}")
        return pixels, content


class ImageFiles(PublishedSet):
    """A set whose images are files of their own."""

    def size(self, kind: str, severity: int, index: int) -> int:
        path = self.place / self.image_name(kind, severity, index)
        try:
            return path.stat().st_size
        except OSError as error:
            raise InputError(path, f"every image of {self.title} in every folder", str(error.strerror)) from None

    def content(self, kind: str, severity: int, index: int) -> bytes:
        return read_bytes(self.place / self.image_name(kind, severity, index))

    def decode(self, content: bytes) -> np.ndarray:
        return decode_image(content)
