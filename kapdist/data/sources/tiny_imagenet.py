"""TinyImageNet-200 (Le and Yang 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip), its folder or its zip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kapdist.data.sources.archives import Files, locate
from kapdist.data.sources.base import FileSource
from kapdist.data.sources.image import is_image_name
from kapdist.errors import InputError

MARKER = "wnids.txt"
ANNOTATIONS = "val/val_annotations.txt"
SPLITS = ("train", "val")  # the images of test/ have no published labels
NAMED = 5  # how many files a message names


class TinyImageNet(FileSource):
    """Images with their names below the data set's root."""

    def __init__(self, files: Files, split: str, wnids: list[str], labelled: list[tuple[str, int]]) -> None:
        labels = np.array([label for _, label in labelled], np.int64)
        super().__init__(f"tiny-imagenet/{split}", wnids, labels)
        self.files, self.names = files, [name for name, _ in labelled]

    def content(self, index: int) -> bytes:
        return self.files.read(self.names[index])

    def image_name(self, index: int) -> str:
        return self.files.label(self.names[index])

    def file_names(self) -> list[str]:
        return self.names


def tiny_imagenet(path: Path, split: str) -> TinyImageNet:
    """Return a split, train or val; classes are WordNet ids, sorted, as torchvision's ImageFolder sorts them.

    Raises:
        InputError: an unknown split; files that are missing, or that no list knows.
    """
    if split not in SPLITS:
        unlabelled = " (its images have no labels)" if split == "test" else ""
        raise InputError("split", " or ".join(SPLITS), split + unlabelled)
    files = locate(path, MARKER)
    if files is None:
        raise InputError(path, f"TinyImageNet-200: a folder or zip with {MARKER}", "none")
    wnids = sorted(files.text(MARKER).split())
    labelled = training_images(files, wnids) if split == "train" else validation_images(files, wnids)
    return TinyImageNet(files, split, wnids, labelled)


def training_images(files: Files, wnids: list[str]) -> list[tuple[str, int]]:
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    # train/<wnid>/images/<name>.JPEG, beside lists of boxes.
    parts = [(name, name.split("/")) for name in files.names() if is_image_name(name)]
    found = [(name, part[1]) for name, part in parts if part[0] == "train" and len(part) > 2]
    strange = sorted({wnid for _, wnid in found} - set(wnids))
    if strange:
        raise InputError(files.place, f"the classes of {MARKER} in train/", f"also {', '.join(strange[:NAMED])}")
    empty = sorted(set(wnids) - {wnid for _, wnid in found})
    if empty:
        raise InputError(files.place, f"images in train/ of every class of {MARKER}", f"none of {empty[0]}")
    return sorted(((name, label_of[wnid]) for name, wnid in found), key=lambda pair: (pair[1], pair[0]))


def validation_images(files: Files, wnids: list[str]) -> list[tuple[str, int]]:
    """Return the images that val_annotations.txt labels, in the order of their labels and names."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    place = files.label(ANNOTATIONS)
    there = {name for name in files.names() if name.startswith("val/") and is_image_name(name)}
    labelled: dict[str, int] = {}
    for number, line in enumerate(files.text(ANNOTATIONS).splitlines(), 1):
        # image, wnid and a box, between tabs
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in label_of:
            raise InputError(f"{place}, line {number}", f"a class of {MARKER}", repr(wnid))
        if f"val/images/{name}" in labelled:
            raise InputError(f"{place}, line {number}", "every image once", f"{name} again")
        labelled[f"val/images/{name}"] = label_of[wnid]
    if absent := sorted(set(labelled) - there):
        raise InputError(place, "files that are there", f"{len(absent)} missing: {', '.join(absent[:NAMED])}")
    if extra := sorted(there - set(labelled)):
        raise InputError(place, "every image of val/", f"none of {len(extra)}: {', '.join(extra[:NAMED])}")
    return sorted(labelled.items(), key=lambda pair: (pair[1], pair[0]))
