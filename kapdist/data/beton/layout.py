"""Reading what `write` wrote: a quick check before FFCV opens the file, and a full one on request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton.manifest import Manifest, manifest_path, read_manifest
from kapdist.errors import InputError
from kapdist.run.files import mapping_in

# FFCV's file format, version 2 (ffcv/types.py): said here again, so that a beton can be read without FFCV.
CURRENT_VERSION = 2
HEADER_TYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_TYPE = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
IMAGE_TYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA_TYPE = np.dtype([("f0", IMAGE_TYPE), ("f1", "<i8")], align=True)
ALLOC_TABLE_TYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE_FIELD, OWN_FIELD = 2, 255  # FFCV's numbers for RGB images, and for what somebody else reads
FIELDS = [("image", IMAGE_FIELD), ("label", 1)]  # names and numbers; 1 is an integer
JPEG, RAW, YCBCR = 0, 1, 2  # how an image is stored: FFCV's numbers, and ours for planes (load/ycbcr.py)
HEADER_BYTES = HEADER_TYPE.itemsize + len(FIELDS) * FIELD_TYPE.itemsize


def fields_with(image_field: int) -> list[tuple[str, int]]:
    return [("image", image_field), *FIELDS[1:]]


class DamagedImageError(Exception):
    """The stored bytes of an image are not what was written."""

    def __init__(self, image: int) -> None:
        super().__init__(f"image {image}")
        self.image = image


@dataclass(frozen=True, eq=False)
class Layout:
    """The parts of a beton that are not pixels; arrays of one entry per image, as narrow as the format allows.

    offsets and sizes are bytes in the file, heights and widths pixels; modes are JPEG, RAW or YCBCR. No image
    reaches over two pages of page_bytes.
    """

    path: Path
    page_bytes: int
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    modes: np.ndarray
    sha256: str
    content: np.ndarray | None = None
    """The bytes that offsets count in, where they are not the file's: images that were decoded into memory."""

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest image when it is decoded."""
        return int((self.heights.astype(np.int64) * self.widths).max()) * 3


@dataclass(frozen=True, eq=False)
class BetonInfo:
    """A beton that passed the quick check; height and width are None where the images differ in size."""

    path: Path
    num_images: int
    class_names: tuple[str, ...]
    labels: np.ndarray
    height: int | None
    width: int | None
    fingerprint: str
    layout: Layout
    checksums: np.ndarray

    @property
    def size_in_words(self) -> str:
        return "of different sizes" if None in (self.height, self.width) else f"of {self.height} x {self.width}"


def open_beton(path: Path) -> BetonInfo:
    """Check a beton's manifest, size, header and tables, without reading an image.

    Raises:
        InputError: missing, truncated, half-written, of another format, or not the manifest's file.
    """
    path = Path(path)
    return open_with_manifest(path)[0]


def open_with_manifest(path: Path) -> tuple[BetonInfo, Manifest]:
    if not path.is_file():
        where = "" if path.is_absolute() else f" from {Path.cwd()} on"  # the folder of a run may be another one's
        found = "a directory" if path.is_dir() else f"no file{where}"
        raise InputError(path, "a beton (kapdist data write)", found)
    # The header first: it tells a half-written file, which has no manifest yet either.
    header = read_header(path)
    manifest = read_manifest(path)
    size = path.stat().st_size
    if size != manifest.size_bytes:
        raise InputError(path, f"{manifest.size_bytes} bytes (its manifest)", f"{size}")
    if int(header["num_samples"]) != manifest.num_images:
        raise InputError(path, f"{manifest.num_images} images (its manifest)", str(header["num_samples"]))
    layout = read_layout(path)
    if layout.sha256 != manifest.layout_sha256:
        raise InputError(
            path, "the tables that its manifest describes", "others: damaged, or another file's manifest"
        )
    info = BetonInfo(
        path=path,
        num_images=manifest.num_images,
        class_names=manifest.class_names,
        labels=layout.labels,
        height=only(layout.heights),
        width=only(layout.widths),
        fingerprint=manifest.fingerprint,
        layout=layout,
        checksums=manifest.checksums.astype(np.uint64),
    )
    return info, manifest


def planes_bytes(heights: Any, widths: Any) -> Any:
    """Return the bytes of images of these sizes, numbers or arrays, as planes of YCbCr 4:2:0."""
    return heights * widths + 2 * (-(-heights // 2) * -(-widths // 2))


def only(values: np.ndarray) -> int | None:
    return int(values[0]) if (values == values[0]).all() else None


def read_header(path: Path) -> np.ndarray:
    """Return FFCV's header after a check of what would make its reader hang or read garbage."""
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise InputError(path, "a beton", f"a file of {size} bytes")
    header = np.fromfile(path, HEADER_TYPE, count=1)[0]
    if header["version"] != CURRENT_VERSION:
        raise InputError(path, f"an FFCV file of version {CURRENT_VERSION}", f"version {header['version']}")
    if header["alloc_table_ptr"] == 0:
        raise InputError(path, "a finished beton", "a half-written one (its writer did not end)")
    fields = np.fromfile(path, FIELD_TYPE, count=int(header["num_fields"]), offset=HEADER_TYPE.itemsize)
    found = [
        (bytes(field["name"]).rstrip(b"\0").decode("ascii", "replace"), int(field["type_id"])) for field in fields
    ]
    if found not in (FIELDS, fields_with(OWN_FIELD)):
        raise InputError(path, "the fields image (RGB) and label (integer)", str(found))
    table = int(header["alloc_table_ptr"]) + int(header["num_samples"]) * ALLOC_TABLE_TYPE.itemsize
    if header["num_samples"] == 0 or table != size:
        expected = f"{table} bytes for {header['num_samples']} images (its header)"
        raise InputError(path, expected, f"{size} (truncated or damaged)")
    return header


def check_own(path: Path) -> None:
    """Refuse to write over what is neither a beton nor its manifest: a mistyped name must not cost anybody a file.

    Raises:
        InputError: names the file.
    """
    begin = np.array([CURRENT_VERSION, len(FIELDS)], "<u2").tobytes()
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(begin)) != begin:
                raise InputError(path, "no file yet, or a beton to write over", "a file that is none")
    elif (beside := manifest_path(path)).is_file() and "format_version" not in mapping_in(beside):
        raise InputError(beside, "no file yet, or a beton's manifest to write over", "a file that is none")


def read_layout(path: Path) -> Layout:
    """Read the tables of a beton whose header is sane.

    Raises:
        InputError: they point outside of the file.
    """
    header = read_header(path)
    count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    metadata = np.fromfile(path, METADATA_TYPE, count=count, offset=HEADER_BYTES)
    allocations = np.fromfile(path, ALLOC_TABLE_TYPE, count=count, offset=table)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(HEADER_BYTES) + metadata.tobytes() + allocations.tobytes())
    images, labels = metadata["f0"], metadata["f1"]
    allocations = allocations[np.argsort(allocations["ptr"], kind="stable")]
    rank = np.minimum(np.searchsorted(allocations["ptr"], images["data_ptr"]), count - 1)
    offsets = images["data_ptr"].astype(np.int64)
    sizes = allocations["size"][rank].astype(np.int64)
    astray = (
        (allocations["ptr"][rank] != images["data_ptr"]) | (offsets < 0) | (sizes < 0) | (offsets + sizes > table)
    )
    heights, widths = images["height"].astype(np.int64), images["width"].astype(np.int64)
    astray |= (heights == 0) | (widths == 0) | (images["mode"] > YCBCR)
    astray |= (images["mode"] == RAW) & (sizes != heights * widths * 3)
    astray |= (images["mode"] == YCBCR) & (sizes != planes_bytes(heights, widths))
    if astray.any():
        raise InputError(path, "images inside of the file", f"image {int(np.argmax(astray))} outside")
    return Layout(
        path=Path(path),
        page_bytes=int(header["page_size"]),
        labels=labels.astype(np.int64),
        offsets=offsets,
        sizes=sizes.astype(np.uint32),
        heights=heights.astype(np.uint16),
        widths=widths.astype(np.uint16),
        modes=images["mode"].copy(),
        sha256=digest.hexdigest(),
    )


def check_labels(info: BetonInfo, num_classes: int) -> None:
    """Refuse labels that a model of num_classes has no logit for.

    Raises:
        InputError: names the first such image.
    """
    wrong = np.flatnonzero((info.labels < 0) | (info.labels >= num_classes))
    if wrong.size:
        found = f"{int(info.labels[wrong[0]])} (image {int(wrong[0])}; {wrong.size} such images)"
        raise InputError(
            info.path, f"labels from 0 to {num_classes - 1} (model.num_classes = {num_classes})", found
        )


def check_side(info: BetonInfo, resolution: int) -> None:
    """Refuse images that a model cannot be shown as they are.

    Raises:
        InputError: they are not all squares of this side, pixels.
    """
    if (info.height, info.width) != (resolution, resolution):
        expected = f"{resolution} x {resolution} images (data.resolution) with data.crop=none"
        raise InputError(info.path, expected, f"images {info.size_in_words}")


def stored_bytes(path: Path) -> np.ndarray:
    """Return the file as a read-only memory map, (bytes,) uint8."""
    return np.asarray(np.memmap(path, np.uint8, mode="r"))
