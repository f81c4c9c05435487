"""What the images are: a source gives pixels and a label for every number below its length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kapdist.data.sources.image import decode_image
from kapdist.errors import InputError


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns that hold the images (bytes, or a struct with bytes) and the labels."""

    image: str = "image"
    label: str = "label"


class Source(Protocol):
    """Images and labels, before they are written to a beton."""

    name: str
    class_names: tuple[str, ...]
    largest_bytes: int | None
    """Bytes of the largest image, None where only decoding would tell."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> tuple[np.ndarray, int]:
        """Return (image (height, width, 3) uint8 RGB, label); raise UnreadableImageError."""

    def image_name(self, index: int) -> str:
        """Return what a message calls the image."""


class FileSource(ABC):
    """Images that are encoded files: a writer may keep their bytes instead of their pixels."""

    largest_bytes: int | None = None
    column: str | None = None
    """Of a table: the one that the images are in."""

    def __init__(self, name: str, class_names: Sequence[str], labels: np.ndarray) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Return the file of an image, byte for byte; raise UnreadableImageError."""

    @abstractmethod
    def image_name(self, index: int) -> str:
        """Return what a message calls the image."""

    def file_names(self) -> list[str] | None:
        """Return the name of every image's file, folders with slashes, for lists of images; None without names."""
        return None

    def item(self, index: int) -> tuple[np.ndarray, int]:
        """Return (image (height, width, 3) uint8 RGB, label); raise UnreadableImageError."""
        return decode_image(self.content(index)), int(self.labels[index])


class ArraySource:
    """Images of one size that are in memory, (images, height, width, 3) uint8 RGB."""

    def __init__(self, name: str, class_names: Sequence[str], images: np.ndarray, labels: np.ndarray) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.images, self.labels = images, labels
        self.largest_bytes: int | None = int(np.prod(images.shape[1:]))

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def image_name(self, index: int) -> str:
        return f"{self.name}!{index}"


def check_class_names(place: object, names: Sequence[str]) -> None:
    """Refuse two classes with one name.

    Raises:
        InputError: names them.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(place, "classes with different names", f"more than one {', '.join(map(repr, twice[:5]))}")


def check_labels_have_names(place: object, labels: np.ndarray, num_classes: int) -> None:
    """Refuse labels that no class name belongs to.

    Raises:
        InputError: names the first such image.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        found = f"{int(labels[wrong[0]])} (image {int(wrong[0])}; {wrong.size} such images)"
        raise InputError(place, f"labels from 0 to {num_classes - 1}", found)
