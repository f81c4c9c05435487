"""Images as a program has them, in a file of tensors: float32 in [0, 1], which no beton keeps to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kapdist.config.fields import SIDES
from kapdist.errors import InputError
from kapdist.run.files import file_sha256, write_atomic

SUFFIX = ".safetensors"
EXPECTED = "images, float32 (number, 3, side, side) in [0, 1], and labels, int64 (number,)"


def is_tensors(path: Path) -> bool:
    return path.suffix == SUFFIX


def write_tensors(folder: Path, images: Tensor, labels: Tensor) -> Path:
    """Write images and labels to a file of a folder, under a name that its content gives.

    Raises:
        InputError: as `check_tensors`.
    """
    from safetensors.torch import save

    check_tensors("images", images, labels)
    content = {"images": images.detach().float().cpu().contiguous(), "labels": labels.detach().long().cpu()}
    written = save(content)
    path = folder / f"images-{hashlib.sha256(written).hexdigest()[:12]}{SUFFIX}"
    if not path.exists():
        write_atomic(path, written)
    return path


def check_tensors(place: object, images: Tensor, labels: Tensor) -> None:
    """Raise InputError unless the tensors are images and labels as the file has them."""
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise InputError(place, f"{name} as a tensor", f"a {type(value).__name__}")
    if not images.is_floating_point():
        found = f"{str(images.dtype).removeprefix('torch.')} (images / 255, if they are bytes)"
        raise InputError(place, "images as floating point in [0, 1]", found)
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
        raise InputError(place, "images (number, 3, side, side), one at least", str(tuple(images.shape)))
    if images.shape[3] not in SIDES:
        raise InputError(place, f"images of {SIDES[0]} to {SIDES[-1]:,} pixels a side", str(images.shape[3]))
    check_values(place, images)
    if labels.is_floating_point() or labels.dtype == torch.bool or tuple(labels.shape) != (len(images),):
        found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise InputError(place, f"labels as whole numbers ({len(images)},)", found)
    if labels.min() < 0:
        raise InputError(place, "labels from 0 on", str(int(labels.min())))


def check_values(place: object, images: Tensor) -> None:
    """Raise InputError unless images are in [0, 1]."""
    if len(images) and (not images.isfinite().all() or images.min() < 0 or images.max() > 1):
        found = f"values from {images.min().item():g} to {images.max().item():g}"
        raise InputError(place, "images in [0, 1]", found)


class Tensors:
    """A file of tensors, of which images are read as they are asked for.

    Raises:
        InputError: no such file, or another content.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise InputError(path, f"a file with {EXPECTED}", "no such file")
        self.path = path
        try:
            self.file = safe_open(path, framework="pt")
            self.images, self.labels = self.file.get_slice("images"), self.file.get_tensor("labels")
            shape, dtype = self.images.get_shape(), self.images.get_dtype()
        except SafetensorError as error:
            raise InputError(path, f"a file with {EXPECTED}", str(error)) from None
        if dtype != "F32" or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[0]:
            raise InputError(path, EXPECTED, f"images {dtype} {tuple(shape)}")
        if tuple(self.labels.shape) != (shape[0],):
            raise InputError(path, EXPECTED, f"{shape[0]} images and labels {tuple(self.labels.shape)}")
        check_tensors(path, self.images[:1], self.labels[:1])
        self.labels = self.labels.long()  # of fewer bits they would be no classes to torch
        if self.labels.min() < 0:
            raise InputError(path, "labels from 0 on", str(int(self.labels.min())))
        self.num_images, self.resolution = int(shape[0]), int(shape[3])

    @property
    def fingerprint(self) -> str:
        return file_sha256(self.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers: a program's labels count in the classes of the model."""
        return tuple(map(str, range(int(self.labels.max()) + 1)))

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, (batch, 3, side, side), and labels, (batch,), for every array of image ids.

        Raises:
            InputError: an image that is not in [0, 1].
        """
        for ids in batches:
            images = torch.cat([self.images[int(image) : int(image) + 1] for image in ids])
            check_values(self.path, images)
            yield images, self.labels[torch.from_numpy(np.asarray(ids, dtype=np.int64))]
