"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html), pickled or binary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.sources.archives import Files, locate
from kapdist.data.sources.base import ArraySource, check_labels_have_names
from kapdist.data.sources.pickles import read_arrays
from kapdist.errors import InputError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Layout:
    """How one of the four distributions names its parts."""

    marker: str
    files: dict[str, tuple[str, ...]]
    label_key: str  # of a pickle
    names_key: str
    label_bytes: int  # of a record of a binary file; the last of them is the label
    pickled: bool


def batches(suffix: str) -> dict[str, tuple[str, ...]]:
    return {
        "train": tuple(f"data_batch_{n}{suffix}" for n in range(1, 6)),
        "test": (f"test_batch{suffix}",),
    }


LAYOUTS = {
    "cifar10": (
        Layout("batches.meta", batches(""), "labels", "label_names", 0, True),
        Layout("batches.meta.txt", batches(".bin"), "", "", 1, False),
    ),
    # Fine labels; a binary record begins with the coarse one.
    "cifar100": (
        Layout("meta", {"train": ("train",), "test": ("test",)}, "fine_labels", "fine_label_names", 0, True),
        Layout("fine_label_names.txt", {"train": ("train.bin",), "test": ("test.bin",)}, "", "", 2, False),
    ),
}


def find(path: Path, name: str) -> tuple[Files, Layout] | None:
    """Return where a distribution of cifar10 or cifar100 lies: its folder, the folder above, or its .tar.gz."""
    for layout in LAYOUTS[name]:
        files = locate(path, layout.marker)
        if files is not None:
            return files, layout
    return None


def cifar(path: Path, name: str, split: str) -> ArraySource:
    """Return a split, train or test, of cifar10 or cifar100 (fine labels), in the order of the files.

    Raises:
        InputError: an unknown split; files that are missing, damaged or not what they should be.
    """
    found = find(path, name)
    if found is None:
        markers = " or ".join(layout.marker for layout in LAYOUTS[name])
        raise InputError(path, f"{name}: a folder or .tar.gz with {markers}", "neither")
    files, layout = found
    if split not in layout.files:
        raise InputError("split", " or ".join(layout.files), split)
    names = class_names(files, layout)
    read = read_pickle if layout.pickled else read_binary
    parts = [read(files, file, layout) for file in layout.files[split]]
    images, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    check_labels_have_names(files.place, labels, len(names))
    # Stored channel by channel.
    images = np.ascontiguousarray(images.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    return ArraySource(f"{name}/{split}", names, images, labels)


def class_names(files: Files, layout: Layout) -> tuple[str, ...]:
    if not layout.pickled:
        return tuple(line.strip() for line in files.text(layout.marker).splitlines() if line.strip())
    place = files.label(layout.marker)
    names = read_arrays(files.needed(layout.marker), place).get(layout.names_key)
    if not isinstance(names, list):
        raise InputError(place, f"a list {layout.names_key}", type(names).__name__)
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)


def read_pickle(files: Files, name: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    place = files.label(name)
    found: dict[str, Any] = read_arrays(files.needed(name), place)
    images, labels = found.get("data"), found.get(layout.label_key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
        raise InputError(place, f"data: (images, {PIXELS}) bytes", f"{getattr(images, 'shape', 'none')}")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise InputError(place, f"{layout.label_key}: a list of {len(images)}", type(labels).__name__)
    return images, np.array(labels, np.int64)


def read_binary(files: Files, name: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(files.needed(name), np.uint8)
    record = layout.label_bytes + PIXELS
    if not content.size or content.size % record:
        raise InputError(files.label(name), f"records of {record} bytes", f"{content.size} bytes")
    records = content.reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)
