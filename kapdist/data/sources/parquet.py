"""Parquet files of encoded images and labels, such as the Hugging Face hub's (ILSVRC/imagenet-1k)."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kapdist.data.sources.base import Columns, FileSource, check_labels_have_names
from kapdist.data.sources.image import UnreadableImageError
from kapdist.errors import InputError, first_line, shown

# What a file's name says of its split: the hub's and torchvision's words.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})(?=\D)")


class ParquetImages(FileSource):
    """Images read a row group at a time; each process keeps one row group in memory."""

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        labels: np.ndarray,
        paths: list[Path],
        groups: np.ndarray,
        column: str,
    ) -> None:
        super().__init__(name, class_names, labels)
        # groups: (row groups, 3): file, number in the file, first image
        self.paths, self.groups, self.column = paths, groups, column
        self.first_of_file = groups[np.searchsorted(groups[:, 0], np.arange(len(paths))), 2]
        self.kept: tuple[int, int, Any] | None = None

    def content(self, index: int) -> bytes:
        row = int(np.searchsorted(self.groups[:, 2], index, side="right")) - 1
        try:
            value = self.rows(row)[index - int(self.groups[row, 2])].as_py()
        except (pa.ArrowException, OSError, IndexError) as error:  # or fewer rows than its head says
            raise UnreadableImageError(f"{type(error).__name__}: {first_line(error)}") from error
        if value is None:
            raise UnreadableImageError("no bytes in its row")
        return value

    def rows(self, row: int) -> Any:
        """Return the images of a row group, read by this process."""
        if self.kept is None or self.kept[:2] != (os.getpid(), row):
            self.kept = None  # one at a time in memory
            file, number, _ = self.groups[row]
            # A thread pool would not survive the fork of a writer's workers.
            with pq.ParquetFile(self.paths[file], memory_map=False) as opened:
                table = opened.read_row_group(int(number), columns=[self.column], use_threads=False)
            self.kept = os.getpid(), row, image_bytes(table.column(0))
        return self.kept[2]

    def file_names(self) -> list[str] | None:
        """Return what the column says of the files that images came from, where it says it of all."""
        named: list[str | None] = []
        for path in self.paths:
            with pq.ParquetFile(path, memory_map=False) as file:
                kind = file.schema_arrow.field(self.column).type
                if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
                    return None
                with whole(path):
                    table = file.read(columns=[f"{self.column}.path"], use_threads=False)
                    named += [value["path"] for value in table.column(0).to_pylist()]
        names = [name.replace(os.sep, "/") for name in named if isinstance(name, str) and name]
        return names if len(names) == len(named) else None

    def image_name(self, index: int) -> str:
        file = int(np.searchsorted(self.first_of_file, index, side="right")) - 1
        return f"{self.paths[file].name}!row {index - int(self.first_of_file[file])}"


def image_bytes(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return array.field("bytes") if pa.types.is_struct(array.type) else array


def parquet(path: Path, split: str | None, columns: Columns) -> ParquetImages:
    """Return the images of a Parquet file, or of a folder's (or its folder data/) that a split names.

    Raises:
        InputError: no such files, columns or split; labels without names.
    """
    paths = choose(path, split)
    groups, values, first = [], [], 0
    names: tuple[str, ...] = ()
    filled: list[Path] = []
    for file_path in paths:
        # One after the other: a data set may have more files than a process may open.
        with open_parquet(file_path, columns) as file:
            for group in range(file.metadata.num_row_groups):
                if rows := file.metadata.row_group(group).num_rows:
                    groups.append((len(filled), group, first))
                    first += rows
            with whole(file_path):
                values.append(file.read(columns=[columns.label], use_threads=False).column(0))
            theirs = names_of_metadata(file, columns)
            if names and theirs and theirs != names:
                raise InputError(
                    file_path, f"the class names of the files before it ({shown(names)})", shown(theirs)
                )
            names = names or theirs
            filled += [file_path] if file.metadata.num_rows else []
    if not groups:
        raise InputError(path, "rows", "none")
    if (found_rows := sum(map(len, values))) != first:
        raise InputError(f"{path}, column {columns.label}", f"{first} labels", str(found_rows))
    labels, found = labels_and_names(together(values, f"{path}, column {columns.label}"))
    names = names or found
    check_labels_have_names(f"{path}, column {columns.label}", labels, len(names))
    name = f"{path}/{split}" if split else str(path)
    return ParquetImages(name, names, labels, filled, np.array(groups), columns.image)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Raise InputError where a file's pages cannot be read, or hold no text where it is due."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(path, "a whole Parquet file", first_line(error)) from error


def choose(path: Path, split: str | None) -> list[Path]:
    if path.is_file():
        if split is not None:
            raise InputError("split", "no split of one Parquet file", split)
        return [path]
    by_split: dict[str, list[Path]] = {}
    for file in parquet_files(path):
        by_split.setdefault(split_of(file), []).append(file)
    words = sorted(set(by_split) - {""})
    if not words and split is None:
        return complete(path, by_split[""])
    wanted = SPLIT_WORDS.get(split or "train", split)
    if wanted not in words:
        found = split or "none given, and no files of a split train"
        raise InputError("split", f"{' or '.join(words) or 'none'} (as the files in {path} are named)", found)
    return complete(path, by_split[str(wanted)])


def complete(folder: Path, files: list[Path]) -> list[Path]:
    """Return files that are numbered as the hub's are, train-00000-of-00294, if none of them is missing.

    Raises:
        InputError: some are, as after a download that was cut short, or they are of two uploads.
    """
    numbers: dict[str, dict[int, set[str]]] = {}
    for file in files:
        if found := NUMBERED.search(file.name):
            of = numbers.setdefault(file.name[: found.start()], {})
            of.setdefault(int(found[2]), set()).add(found[1])
    for name, totals in numbers.items():
        if len(totals) > 1:
            raise InputError(
                folder, f"files {name}-* of one upload", f"of {' and '.join(map(str, sorted(totals)))}"
            )
        for total, there in totals.items():
            if len(there) < total:
                expected = f"{total} files {name}-*-of-{total:05} (for some of them, a name without -of-)"
                raise InputError(folder, expected, f"{len(there)}")
    return files


def parquet_files(path: Path) -> list[Path]:
    found = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    for file in found:
        if not file.is_file():  # a pipe would be waited for
            raise InputError(file, "a Parquet file", "no regular file")
    return found


def split_of(file: Path) -> str:
    """Return train, val, test or nothing: train-00000-of-00294.parquet is train."""
    return SPLIT_WORDS.get(file.stem.replace("_", "-").split("-")[0].lower(), "")


def open_parquet(path: Path, columns: Columns) -> pq.ParquetFile:
    with whole(path):
        file = pq.ParquetFile(path)
    schema = file.schema_arrow
    for name in (columns.image, columns.label):
        if name not in schema.names:
            expected = f"a column {name} (or --image-column and --label-column)"
            raise InputError(path, expected, f"columns {', '.join(schema.names)}")
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(f"{path}, column {columns.image}", "bytes, or a struct with bytes", str(kind))
    return file


def together(values: list[pa.ChunkedArray], place: str) -> pa.ChunkedArray:
    """Return the columns of all files as one, words in place of a dictionary's numbers."""
    kinds = sorted({str(value.type) for value in values})
    if len(kinds) > 1:
        raise InputError(place, "one type in all files", ", ".join(kinds))
    whole = pa.chunked_array([chunk for value in values for chunk in value.chunks], values[0].type)
    return whole.cast(whole.type.value_type) if pa.types.is_dictionary(whole.type) else whole


def labels_and_names(values: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (labels int64, class names): numbers name themselves, words are sorted."""
    if values.null_count:
        raise InputError("labels", "a label in every row", f"{values.null_count} rows without one")
    if pa.types.is_integer(values.type):
        try:
            labels = values.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError("labels", "integers of at most 63 bits", first_line(error)) from None
        return labels, tuple(map(str, range(int(labels.max()) + 1)))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        try:
            words = np.array(values.to_pylist(), object)
        except UnicodeDecodeError as error:
            raise InputError("labels", "words in UTF-8", str(error)) from None
        names, labels = np.unique(words, return_inverse=True)
        return labels.astype(np.int64), tuple(map(str, names))
    raise InputError("labels", "integers or words", str(values.type))


def names_of_metadata(file: pq.ParquetFile, columns: Columns) -> tuple[str, ...]:
    """Return the class names that the `datasets` library writes beside the columns; none where there are none."""
    try:
        metadata = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][columns.label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    # Earlier versions wrote {"0": ..., "1": ...}.
    names = [names[str(n)] for n in range(len(names))] if isinstance(names, dict) else names
    return tuple(map(str, names))
