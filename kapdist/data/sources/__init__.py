"""Where images come from: data sets by name, and formats that are recognised by their files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kapdist.data.sources import cifar, imagenet, tiny_imagenet
from kapdist.data.sources.archives import locate
from kapdist.data.sources.base import ArraySource, Columns, FileSource, Source, check_class_names
from kapdist.data.sources.fashion import fashion_mnist
from kapdist.data.sources.folder import ClassFolder, class_folder, split_folder
from kapdist.data.sources.held_out import side_of
from kapdist.errors import InputError

SOURCES: dict[str, Callable[[str], Source]] = {"fashion-mnist": fashion_mnist}


@dataclass(frozen=True)
class Format:
    """How files are known to be of a format, and how they are opened."""

    recognise: Callable[[Path], bool]
    open: Callable[[Path, str | None, Columns], Source]


def open_parquet(path: Path, split: str | None, columns: Columns) -> Source:
    from kapdist.data.sources.parquet import parquet  # pyarrow, only where it is needed

    return parquet(path, split, columns)


def is_parquet(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".parquet"
    return any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


# In the order in which they are tried; a folder of class folders is what remains.
FORMATS = {
    "imagenet": Format(
        imagenet.is_imagenet,
        lambda path, split, _: imagenet.imagenet(path, split),
    ),
    "parquet": Format(is_parquet, open_parquet),
    "tiny-imagenet": Format(
        lambda path: locate(path, tiny_imagenet.MARKER) is not None,
        lambda path, split, _: tiny_imagenet.tiny_imagenet(path, split or "train"),
    ),
    "cifar10": Format(
        lambda path: cifar.find(path, "cifar10") is not None,
        lambda path, split, _: cifar.cifar(path, "cifar10", split or "train"),
    ),
    "cifar100": Format(
        lambda path: cifar.find(path, "cifar100") is not None,
        lambda path, split, _: cifar.cifar(path, "cifar100", split or "train"),
    ),
    "folder": Format(Path.is_dir, lambda path, split, _: class_folder(split_folder(path, split))),
}
FOLDER = f"a folder of class folders, or files of {', '.join(name for name in FORMATS if name != 'folder')}"


def make_source(
    source: str,
    split: str | None = None,
    *,
    format: str | None = None,
    columns: Columns | None = None,
    held_out: float | None = None,
) -> Source:
    """Return a source by its name in SOURCES, or the files at a path, their format recognised unless it is given.

    Args:
        split: train where it is None, but for files that have no splits.
        format: a name in FORMATS.
        columns: of Parquet files.
        held_out: of class folders without splits, the share of every class that is val; the rest is train.

    Raises:
        InputError: neither a name nor a path; a format or a split that is not there; damaged files.
    """
    if format is not None and format not in FORMATS:
        raise InputError("format", ", ".join(FORMATS), format)
    if source in SOURCES:
        return cut_in_two(SOURCES[source](split or "train"), split, held_out)
    path = Path(source)
    if not source or not path.exists():
        near = difflib.get_close_matches(source, SOURCES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError("source", f"{', '.join(SOURCES)} or {FOLDER}", f"{source or 'nothing'}{hint}")
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise InputError(path, FOLDER, "neither a file nor a folder")
    found = format or recognised(path)
    opened = FORMATS[found].open(path, split if held_out is None else None, columns or Columns())
    check_class_names(opened.name, opened.class_names)
    return cut_in_two(opened, split, held_out)


def cut_in_two(source: Source, split: str | None, held_out: float | None) -> Source:
    if held_out is None:
        return source
    if not isinstance(source, ClassFolder):
        raise InputError("held out", "class folders, which have no splits of their own", source.name)
    return side_of(source, split or "train", held_out)


def recognised(path: Path) -> str:
    for name, format in FORMATS.items():
        if format.recognise(path):
            return name
    raise InputError(path, FOLDER, "a file of none of them")


__all__ = [
    "FORMATS",
    "SOURCES",
    "ArraySource",
    "Columns",
    "FileSource",
    "Source",
    "class_folder",
    "fashion_mnist",
    "make_source",
]
