"""FFCV's file format: where images go, and the tables around them. Byte by byte what FFCV's one worker writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kapdist.data.beton.layout import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    FIELD_TYPE,
    FIELDS,
    HEADER_BYTES,
    HEADER_TYPE,
    IMAGE_FIELD,
    METADATA_TYPE,
    OWN_FIELD,
    RAW,
    fields_with,
)

# What is known of a stored image; size 0 where there is none. `kept`: its bytes are the source's own.
RECORD = np.dtype(
    [
        ("label", "<i8"),
        ("size", "<i8"),
        ("checksum", "<u8"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("mode", "u1"),
        ("kept", "u1"),
    ]
)


def data_start(num_images: int, page_size: int) -> int:
    """Return where the first page begins, bytes."""
    tables = HEADER_BYTES + num_images * METADATA_TYPE.itemsize
    return -(-tables // page_size) * page_size


def place(position: int, sizes: np.ndarray, page_size: int) -> tuple[np.ndarray, int]:
    """Return (where each image begins, where the next one may), counted from the first page.

    No image crosses the border of a page: FFCV reads whole pages.
    """
    begins = np.empty(len(sizes), np.int64)
    for index, size in enumerate(sizes.tolist()):
        if position % page_size + size > page_size:
            position = -(-position // page_size) * page_size
        begins[index] = position
        position += size
    return begins, position


def header(num_images: int, page_size: int, table: int, image_field: int = IMAGE_FIELD) -> bytes:
    """Return the header and the fields; `table` is where the allocation table begins, 0 in an unfinished file."""
    head = np.zeros(1, HEADER_TYPE)
    values = {"version": CURRENT_VERSION, "num_fields": len(FIELDS), "page_size": page_size}
    for key, value in (values | {"num_samples": num_images, "alloc_table_ptr": table}).items():
        head[key] = value
    fields = np.zeros(len(FIELDS), FIELD_TYPE)
    for field, (name, kind) in zip(fields, fields_with(image_field), strict=True):
        field["type_id"] = kind
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return head.tobytes() + fields.tobytes()


def begin(path: Path, num_images: int, page_size: int) -> None:
    """Write what tells an unfinished beton from other files, and drop what was behind it."""
    path.write_bytes(header(num_images, page_size, 0))


def finish(path: Path, records: np.ndarray, begins: np.ndarray, end: int, start: int, page_size: int) -> None:
    """Write the tables of a file whose images are all in their places, and then its header.

    FFCV refuses a file with images that it would take for others: their field is one that it does not know.

    Args:
        records: of all images of the source, in its order; begins: where each begins.
        end: where the last one ends; it and `begins` are counted from `start`, the first page.
    """
    there = np.flatnonzero(records["size"])
    records, begins = records[there], begins[there]
    metadata = np.zeros(len(there), METADATA_TYPE)
    for key in ("mode", "width", "height"):
        metadata["f0"][key] = records[key]
    metadata["f0"]["data_ptr"] = start + begins
    metadata["f1"] = records["label"]
    table = np.zeros(len(there), ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(len(there)), start + begins, records["size"]
    length = start + -(-end // page_size) * page_size
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(metadata.tobytes())
        file.truncate(length)
        file.seek(length)
        file.write(table.tobytes())
        file.flush()
        os.fsync(file.fileno())  # the header says that the rest is there
        file.seek(0)
        field = OWN_FIELD if (records["mode"] > RAW).any() else IMAGE_FIELD
        file.write(header(len(there), page_size, length, field))
