"""A folder of class folders as a source: any size and kind of image."""

from __future__ import annotations

import os
from copy import copy
from pathlib import Path

import numpy as np

from kapdist.data.sources.base import FileSource
from kapdist.data.sources.image import EXTENSIONS, UnreadableImageError, is_image_name
from kapdist.errors import InputError

SPLIT_FOLDERS = ("train", "val", "validation", "test")


class ClassFolder(FileSource):
    """The images below root/<class name>/, however deep; labels as torchvision's ImageFolder gives them."""

    def __init__(self, root: Path) -> None:
        names = class_names(root)
        taken: dict[Path, Path] = {}
        found = [image_files(root / name, taken) for name in names]
        empty = [name for name, files in zip(names, found, strict=True) if not files]
        if empty:
            raise InputError(
                root, f"images ({' '.join(EXTENSIONS)}) in every class folder", f"none in {', '.join(empty)}"
            )
        super().__init__(str(root), names, np.repeat(np.arange(len(found)), [len(files) for files in found]))
        self.root = root
        self.files = [file for files in found for file in files]

    def content(self, index: int) -> bytes:
        return read_bytes(self.root / self.files[index])

    def image_name(self, index: int) -> str:
        return self.files[index]

    def file_names(self) -> list[str]:
        return self.files

    def only(self, images: np.ndarray, name: str) -> ClassFolder:
        """Return some of the images, under a name of their own."""
        some = copy(self)
        some.name, some.labels = name, self.labels[images]
        some.files = [self.files[index] for index in images]
        return some


def split_folder(path: Path, split: str | None) -> Path:
    """Return the folder of class folders of a split; the path itself where none is asked for.

    Raises:
        InputError: the split has no folder; or the class folders are splits.
    """
    if split is not None:
        if not (path / split).is_dir():
            expected = f"no split of a folder: give the folder of the split itself, or one with {split}/ in it"
            expected += ", or cut it by --held-out 0.2"
            raise InputError("split", expected, split)
        return path / split
    splits = [name for name in SPLIT_FOLDERS if (path / name).is_dir()]
    if splits and set(splits) == set(class_names(path)):
        raise InputError("split", f"--split {' or '.join(splits)} (folders of {path})", "none given")
    return path


def class_folder(path: Path) -> ClassFolder:
    """Return the images of a folder whose first level of folders names the classes, sorted by name.

    Names that begin with a dot are passed over, other kinds of file too; links are followed.

    Raises:
        InputError: no folder, no class folders, or a class folder without images.
    """
    return ClassFolder(Path(path))


def class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise InputError(root, "a folder of class folders", "a file" if root.exists() else "nothing")
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(root, "a folder that can be read", str(error.strerror)) from error
    for entry in entries:
        check_leads_somewhere(entry.path)
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise InputError(root, "a folder of class folders", "no folder in it")
    return tuple(names)


def image_files(folder: Path, taken: dict[Path, Path]) -> list[str]:
    """Return the paths of the images below a class folder, relative to its parent, in torchvision's order.

    Args:
        taken: real folders and the names that they were taken under, of all classes so far; added to.

    Raises:
        InputError: a folder below that cannot be read, leads back to one above it or was taken before, or a link
            that leads nowhere.
    """

    def unreadable(error: OSError) -> None:
        raise InputError(error.filename, "a folder that can be read", str(error.strerror)) from error

    files = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        take(Path(place), taken)
        for name in names:
            if is_image_name(name):
                files.append((place, name))
            elif not name.startswith("."):
                check_leads_somewhere(os.path.join(place, name))
    return [str(Path(place, name).relative_to(folder.parent)) for place, name in sorted(files)]


def take(place: Path, taken: dict[Path, Path]) -> None:
    """Remember a folder by where it really is: its images have one label, once, and no walk goes round."""
    real, above = place.resolve(), place.parent.resolve()
    if real == above or real in above.parents:
        raise InputError(place, "links to other folders than those above", f"one to {real}")
    if real in taken:
        raise InputError(place, "every folder of images once", f"the one that {taken[real]} is too")
    taken[real] = place


def check_leads_somewhere(path: str) -> None:
    """Refuse a link that leads nowhere or to itself: what it stands for would be left out, and labels follow."""
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(path, "a link that leads somewhere, as labels follow", "a dangling one")


def read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise UnreadableImageError("no regular file")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(str(error.strerror)) from error
