"""The manifest beside a beton: what is in the file, so that damage is found before FFCV meets it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.errors import InputError
from kapdist.run.files import fingerprint, to_json, write_json

FORMAT_VERSION = 2
WITHOUT_NAMES = 1  # the version that kept no file names
NOT_SHOWN = {"checksums", "names"}


@dataclass(frozen=True, eq=False)
class Manifest:
    """What was written. `checksums` holds the XXH64 of every image's stored bytes, in file order.

    names are the files that images came from, packed, as most readers never ask; None where the source has none.
    """

    source: str
    num_images: int
    class_names: tuple[str, ...]
    per_class: tuple[int, ...]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    encoding: str
    max_side: int | None
    skipped: tuple[dict[str, str], ...]
    size_bytes: int
    sha256: str
    layout_sha256: str
    fingerprint: str
    packages: dict[str, str | None]
    checksums: np.ndarray
    stored: dict[str, int] = field(default_factory=dict)
    """How many images are stored how, and their bytes."""
    names: str | None = None
    format_version: int = FORMAT_VERSION
    writing: dict[str, Any] = field(default_factory=dict)
    """How fast the last writer was: the one thing that differs when the same is written again."""

    def summary(self) -> dict[str, Any]:
        """Return the manifest as JSON values, without what there is of every image."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_SHOWN}

    def file_names(self, beton: Path) -> list[str]:
        """Return the file of every image, as its source calls it, folders with slashes.

        Raises:
            InputError: none were kept.
        """
        if self.names is None:
            place, expected = manifest_path(beton), "the images' file names"
            if self.format_version == WITHOUT_NAMES:
                found = "a beton of before they were kept"
                raise InputError(place, f"{expected} (write it again, or list ids)", found)
            raise InputError(place, f"{expected} (or list ids)", f"none, as {self.source} has none")
        return unpacked(self.names)


def manifest_path(beton: Path) -> Path:
    return beton.with_name(beton.name + ".json")


def content_fingerprint(checksums: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Return what identifies the images and labels, whatever order their bytes have in the file."""
    return fingerprint([encode(checksums), encode(labels), list(class_names)])


def encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()


def packed(names: Sequence[str]) -> str:
    """Return names as a few letters each."""
    return base64.b64encode(zlib.compress(to_json(list(names)).encode())).decode()


def unpacked(names: str) -> list[str]:
    return list(json.loads(zlib.decompress(base64.b64decode(names, validate=True))))


def write_manifest(beton: Path, manifest: Manifest) -> None:
    """Write the manifest of a beton, atomically."""
    of_images = {"names": manifest.names, "checksums": encode(manifest.checksums)}
    write_json(manifest_path(beton), manifest.summary() | of_images)


def read_manifest(beton: Path) -> Manifest:
    """Read the manifest of a beton.

    Raises:
        InputError: it is missing, not a manifest, or of another format version.
    """
    path = manifest_path(beton)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(path, "the manifest that `kapdist data write` puts beside a beton", "no file") from None
    except (ValueError, OSError) as error:
        raise InputError(path, "a manifest", str(error)) from error
    version = found.get("format_version") if isinstance(found, dict) else None
    if version not in (FORMAT_VERSION, WITHOUT_NAMES):
        expected = f"format version {WITHOUT_NAMES} or {FORMAT_VERSION} (write the beton again)"
        raise InputError(path, expected, f"version {version}")
    try:
        return parse(found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, "a manifest", f"a damaged one ({error!r})") from error


def parse(found: dict[str, Any]) -> Manifest:
    checksums = np.frombuffer(base64.b64decode(found.pop("checksums"), validate=True), "<u8")
    if len(checksums) != found["num_images"]:
        raise ValueError(f"{len(checksums)} checksums for {found['num_images']} images")
    lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    return Manifest(**(found | lists), checksums=checksums)
