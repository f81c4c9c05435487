"""CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich 2019, https://zenodo.org/records/2535967 and /3555552).

One corruption.npy for each corruption, (5 x images, 32, 32, 3) uint8, the severities one after the other, and one
labels.npy for all: the numbers of the test images' classes, the fine ones of CIFAR-100, without names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kapdist.config.fields import CORRUPTIONS
from kapdist.data.sources.image import UnreadableImageError
from kapdist.data.sources.published import EXTRA, PublishedSet
from kapdist.errors import InputError, first_line

SIDE, SEVERITIES = 32, 5
PIXELS = SIDE * SIDE * 3
LABELS = "labels.npy"


class CifarC(PublishedSet):
    """Arrays in a folder, read where they are."""

    published_images, side = 10_000, SIDE
    kinds, extra = CORRUPTIONS, EXTRA
    class_names = None
    all_class_names = ()

    def __init__(self, place: Path, kinds: Sequence[str], severities: Sequence[int]) -> None:
        self.place = place
        asked = kinds or self.counted_there()
        self.arrays = {kind: open_array(place / f"{kind}.npy") for kind in asked}
        num_images = len(self.arrays[asked[0]])
        for kind, array in self.arrays.items():
            if len(array) != num_images:
                expected = f"{num_images} images, as {asked[0]}.npy has"
                raise InputError(place / f"{kind}.npy", expected, str(len(array)))
        self.labels = read_labels(place, num_images)
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            found = f"labels from {self.labels.min()} to {self.labels.max()}"
            raise InputError(place / LABELS, f"labels from 0 to {self.num_classes - 1} ({self.title})", found)

    def there(self) -> tuple[str, ...]:
        return tuple(kind for kind in (*self.kinds, *self.extra) if (self.place / f"{kind}.npy").is_file())

    def image_name(self, kind: str, severity: int, index: int) -> str:
        return f"{kind}.npy!{(severity - 1) * len(self) + index}"

    def size(self, kind: str, severity: int, index: int) -> int:
        return PIXELS

    def content(self, kind: str, severity: int, index: int) -> bytes:
        return self.arrays[kind][(severity - 1) * len(self) + index].tobytes()

    def decode(self, content: bytes) -> np.ndarray:
        if len(content) != PIXELS:
            raise UnreadableImageError(f"{len(content)} bytes")
        return np.frombuffer(content, np.uint8).reshape(SIDE, SIDE, 3)


class Cifar10C(CifarC):
    name, title, num_classes = "cifar-10-c", "CIFAR-10-C", 10


class Cifar100C(CifarC):
    name, title, num_classes = "cifar-100-c", "CIFAR-100-C", 100


def load(path: Path) -> np.ndarray:
    """Map a .npy into memory; pickled objects are refused.

    Raises:
        InputError: there is none, it is cut off, or it is no array.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(path, "a .npy that can be read", error.strerror or first_line(error)) from None
    except Exception as error:  # a damaged header is parsed as Python
        raise InputError(path, "a whole .npy without pickled objects", first_line(error)) from None
    if not isinstance(array, np.ndarray):
        raise InputError(path, "one array", type(array).__name__)
    return array


def open_array(path: Path) -> np.ndarray:
    array = load(path)
    if array.dtype != np.uint8 or array.shape[1:] != (SIDE, SIDE, 3) or not len(array) or len(array) % SEVERITIES:
        expected = f"(5 x images, {SIDE}, {SIDE}, 3) uint8, five severities one after the other"
        raise InputError(path, expected, f"{array.shape} {array.dtype}")
    return array


def read_labels(place: Path, num_images: int) -> np.ndarray:
    """Return the labels of one severity; the published file repeats them for all five, others have them once."""
    array, each = load(place / LABELS), num_images // SEVERITIES
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) not in (each, num_images):
        expected = f"{num_images} integers, one for each image of a .npy"
        raise InputError(place / LABELS, expected, f"{array.shape} {array.dtype}")
    labels = np.array(array, np.int64)
    if not (labels.reshape(-1, each) == labels[:each]).all():
        raise InputError(place / LABELS, "the same labels for all five severities", "others")
    return labels[:each]


def fits_ten(place: Path) -> bool:
    """Tell CIFAR-10-C from CIFAR-100-C by the labels."""
    labels = load(place / LABELS)
    return bool(labels.size) and int(labels.max()) < Cifar10C.num_classes
