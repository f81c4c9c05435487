"""ILSVRC 2012 (Russakovsky et al. 2015, arXiv 1409.0575) from its tars as they are downloaded, not unpacked.

Labels are torchvision's: the WordNet ids, sorted. The ground truth of the validation images comes from the devkit;
ILSVRC2012_ID n, by which it names a class, is line n of SYNSETS, as in the devkit's meta.mat.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kapdist.data.sources.archives import (
    Files,
    GzipTarFiles,
    TarFiles,
    Window,
    locate,
    read_exactly,
    tar_index,
)
from kapdist.data.sources.base import FileSource, check_labels_have_names
from kapdist.data.sources.image import UnreadableImageError, is_image_name
from kapdist.errors import InputError

TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
SYNSETS = Path(__file__).with_name("ilsvrc2012_synsets.txt")


def wordnet_ids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids in the order of the labels."""
    return tuple(sorted(SYNSETS.read_text().split()))


class TarImages(FileSource):
    """Images at known places of one uncompressed tar: any process reads any of them."""

    def __init__(
        self,
        archive: TarFiles,
        class_names: tuple[str, ...],
        labels: np.ndarray,
        images: dict[str, tuple[int, int]],
    ) -> None:
        super().__init__(str(archive.place), class_names, labels)
        self.archive, self.names = archive, list(images)
        self.where = np.array(list(images.values()), np.int64)  # (images, 2): offset and bytes

    def content(self, index: int) -> bytes:
        offset, size = self.where[index]
        try:
            return read_exactly(self.archive.descriptor, int(offset), int(size))
        except (OSError, EOFError) as error:
            raise UnreadableImageError(str(error)) from error

    def image_name(self, index: int) -> str:
        return f"{self.archive.place.name}!{self.names[index]}"

    def file_names(self) -> list[str]:
        return [name.replace(".tar!", "/") for name in self.names]  # as they are in folders of classes


def is_imagenet(path: Path) -> bool:
    """Tell whether a path is one of the tars, by name, or a folder with one of them."""
    return any(path.name == tar if path.is_file() else (path / tar).is_file() for tar in TARS.values())


def imagenet(path: Path, split: str | None) -> TarImages:
    """Return a split, train or val, from its tar or from the folder that holds it (for val with the devkit).

    Raises:
        InputError: an unknown split; archives that are missing, cut off or do not fit each other.
    """
    if path.is_file():
        named = [word for word, tar in TARS.items() if tar == path.name]
        split, path = split or (named[0] if named else "train"), path.parent
    split = split or "train"
    if split not in TARS:
        raise InputError("split", " or ".join(TARS), split)
    tar = path / TARS[split]
    if not tar.is_file():
        raise InputError(path, TARS[split], "no such file")
    return training(tar) if split == "train" else validation(tar, path)


def training(tar: Path) -> TarImages:
    """Return the images of the tar of one tar per class, classes and names sorted."""
    outer = TarFiles(tar)
    classes = {name.removesuffix(".tar"): where for name, where in outer.where.items() if name.endswith(".tar")}
    if not classes:
        raise InputError(tar, "one tar per class in it", "none")
    images: dict[str, tuple[int, int]] = {}
    counts = []
    for wnid in sorted(classes):
        inner = tar_index(Window(outer.descriptor, *classes[wnid]), f"{tar}!{wnid}.tar")
        names = sorted(name for name in inner if is_image_name(name))
        if not names:
            raise InputError(f"{tar}!{wnid}.tar", "images", "none")
        images |= {f"{wnid}.tar!{name}": inner[name] for name in names}
        counts.append(len(names))
    return TarImages(outer, tuple(sorted(classes)), np.repeat(np.arange(len(counts)), counts), images)


def validation(tar: Path, folder: Path) -> TarImages:
    """Return the validation images, sorted by name, with the devkit's labels."""
    wnids = SYNSETS.read_text().split()
    truth = read_truth(devkit_files(folder), wnids)
    files = TarFiles(tar)
    names = sorted(name for name in files.names() if is_image_name(name))
    if len(names) != len(truth):
        raise InputError(tar, f"{len(truth)} images (the devkit's ground truth)", str(len(names)))
    return TarImages(files, tuple(sorted(wnids)), truth, {name: files.where[name] for name in names})


def devkit_files(folder: Path) -> Files:
    archive = folder / f"{DEVKIT}.tar.gz"
    if archive.is_file():
        files: Files = GzipTarFiles(archive)
        files.prefix = f"{DEVKIT}/"
        return files
    found = locate(folder, TRUTH)
    if found is None:
        raise InputError(
            folder, f"{archive.name} or its folder, for the labels of the validation images", "neither"
        )
    return found


def read_truth(files: Files, wnids: list[str]) -> np.ndarray:
    """Return the label of every validation image; the devkit names its class by the place of the id, from 1."""
    place = files.label(TRUTH)
    try:
        numbers = [int(line) for line in files.text(TRUTH).split()]
    except ValueError as error:
        raise InputError(place, "an ILSVRC2012_ID on every line", str(error)) from error
    label_of = {wnids.index(wnid) + 1: label for label, wnid in enumerate(sorted(wnids))}
    truth = np.array([label_of.get(number, -1) for number in numbers], np.int64)
    check_labels_have_names(place, truth, len(label_of))
    return truth
