"""`kapdist data write`: a source becomes a beton and the manifest beside it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton.encode import Encoding, Store
from kapdist.data.beton.layout import JPEG, YCBCR, check_own, read_layout
from kapdist.data.beton.manifest import Manifest, content_fingerprint, manifest_path, packed, write_manifest
from kapdist.data.beton.parts import Parts
from kapdist.data.beton.writer import NO_ROOM, Progress
from kapdist.data.sources import Columns, Source, make_source
from kapdist.data.sources.base import FileSource, check_class_names
from kapdist.environment import package_versions, usable_cpus
from kapdist.errors import InputError
from kapdist.run.files import NOT_WRITABLE, check_outputs, file_sha256, output, sync
from kapdist.run.lock import locked

PACKAGES = ("kapdist", "numpy", "opencv-python", "pillow", "simplejpeg")
NAMED = 20  # how many bad images a message names


def write(
    source: str,
    out: Path,
    *,
    split: str | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    held_out: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a source, by name or path, to a beton; return its manifest's summary.

    The first arguments are make_source's, the options write_beton's.
    """
    check_place(Path(out), keep_folders=False)
    return write_beton(
        make_source(source, split, format=format, columns=columns, held_out=held_out), out, **options
    )


def write_beton(
    source: Source,
    out: Path,
    *,
    max_side: int | None = None,
    jpeg_quality: int | None = None,
    jpeg_share: float = 1.0,
    raw_up_to_bytes: int = 0,
    store: Store | None = None,
    skip_unreadable: bool = False,
    num_workers: int = 0,
    timeout_seconds: float = 600.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write every image of a source to `out` (FFCV) and `out`.json (the manifest), in the source's order.

    What is done is kept in the folder `out`.writing until the end; the same call again goes on from there.
    The file depends on the source and the options alone: not on workers, and not on how often it was interrupted.

    Args:
        max_side, jpeg_quality, jpeg_share, raw_up_to_bytes, store: as of kapdist.data.beton.encode.Encoding.
        skip_unreadable: leave unreadable images out and list them in the manifest, instead of refusing.
        num_workers: processes; 0 takes the CPUs that this process may use.
        timeout_seconds: longest time in which no worker begins another image.
        progress: called with (images done, images in all).

    Returns:
        The manifest's summary.

    Raises:
        InputError: nothing to write, a place that cannot be written (said first), a full disk, or
            unreadable images (all of them reported together).
        WriterError: a worker process died or stopped; names the image.
    """
    encoding = Encoding(max_side, jpeg_quality, jpeg_share, raw_up_to_bytes, store)
    encoding.check()
    if num_workers < 0:
        raise InputError("num workers", "0 or more", str(num_workers))
    check_class_names(source.name, source.class_names)
    if not len(source):
        raise InputError(source.name, "images", "none")
    out, started = Path(out), time.monotonic()
    check_place(out)
    folder = out.with_name(f"{out.name}.writing")
    with disk_in_one_line(out), locked(folder / "lock"), left_if_worth(folder, source, encoding) as parts:
        workers = num_workers or usable_cpus()
        bad = parts.write(workers, timeout_seconds, progress)
        if bad and (not skip_unreadable or len(bad) == len(source)):
            raise unreadable(source, bad)
        parts.finish()
        manifest = describe(source, parts, encoding, bad, pace(parts, workers, time.monotonic() - started))
        # The manifest first: a writer that is killed between the two still has the file, and does this again.
        write_manifest(out, manifest)
        os.replace(parts.path, out)
        sync(out.parent)
    return manifest.summary()


def check_place(out: Path, keep_folders: bool = True) -> None:
    check_outputs(out, manifest_path(out), keep_folders=keep_folders)
    with output(out, NOT_WRITABLE):
        check_own(out)


@contextlib.contextmanager
def disk_in_one_line(out: Path) -> Iterator[None]:
    """Take a disk that is full, or that does not take a file any more, for the wrong input that it is."""
    try:
        with output(out, NOT_WRITABLE):
            yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise InputError(out, "room on its disk", str(error)) from error
        raise


@contextlib.contextmanager
def left_if_worth(folder: Path, source: Source, encoding: Encoding) -> Iterator[Parts]:
    """Give the unfinished beton; leave its folder to the next writer if that could go on from it."""
    parts = Parts(source, encoding, folder)
    worth = False
    try:
        yield parts
    except BaseException:
        worth = bool(parts.noted)
        raise
    finally:
        if not worth:
            shutil.rmtree(folder, ignore_errors=True)


def unreadable(source: Source, bad: dict[int, str]) -> InputError:
    named = [f"{source.image_name(index)} ({reason})" for index, reason in sorted(bad.items())[:NAMED]]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    expected = "readable images (or --skip-unreadable; the others are kept for it)"
    return InputError(source.name, expected, f"{len(bad)} unreadable: {', '.join(named)}{more}")


def describe(
    source: Source, parts: Parts, encoding: Encoding, bad: dict[int, str], writing: dict[str, Any]
) -> Manifest:
    written = parts.board.records["size"] > 0
    records, names = parts.board.records[written], file_names(source)
    shapes = list(zip(records["height"].tolist(), records["width"].tolist(), strict=True))
    sums = records["checksum"].copy()
    return Manifest(
        source=source.name,
        num_images=len(sums),
        class_names=tuple(source.class_names),
        per_class=tuple(np.bincount(records["label"], minlength=len(source.class_names)).tolist()),
        smallest=min(shapes, key=lambda shape: shape[0] * shape[1]),
        largest=max(shapes, key=lambda shape: shape[0] * shape[1]),
        encoding=encoding.words(),
        max_side=encoding.max_side,
        skipped=tuple({"image": source.image_name(index), "reason": bad[index]} for index in sorted(bad)),
        size_bytes=parts.path.stat().st_size,
        sha256=file_sha256(parts.path),
        layout_sha256=read_layout(parts.path).sha256,
        fingerprint=content_fingerprint(sums, records["label"], tuple(source.class_names)),
        packages=package_versions(PACKAGES),
        checksums=sums,
        stored=stored(records),
        names=packed(list(itertools.compress(names, written))) if names else None,
        writing=writing,
    )


def file_names(source: Source) -> list[str] | None:
    return source.file_names() if isinstance(source, FileSource) else None


def pace(parts: Parts, num_workers: int, seconds: float) -> dict[str, Any]:
    """Return how fast this writer was; what an earlier one had done does not count."""
    images = len(parts.source) - parts.images_before
    return {
        "seconds": round(seconds, 3),
        "images": images,
        "images_per_second": round(images / seconds, 1),
        "num_workers": num_workers,
    }


def stored(records: np.ndarray) -> dict[str, int]:
    """Return how many images are stored how, and the bytes of all of them."""
    jpeg, ycbcr = records["mode"] == JPEG, int((records["mode"] == YCBCR).sum())
    kept = records["kept"] > 0
    return {
        "jpeg_as_it_was": int(kept.sum()),
        "jpeg_encoded": int((jpeg & ~kept).sum()),
        "raw": int((~jpeg).sum()) - ycbcr,
        **({"ycbcr": ycbcr} if ycbcr else {}),
        "image_bytes": int(records["size"].sum()),
    }
