"""`kapdist data write`: a source becomes a beton and the manifest beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton import read_layout, stored_bytes
from kapdist.data.checksum import checksums
from kapdist.data.manifest import Manifest, content_fingerprint, write_manifest
from kapdist.data.sources import Source, make_source
from kapdist.data.writer import Progress, write_images
from kapdist.environment import package_versions, usable_cpus
from kapdist.errors import InputError
from kapdist.rundir import file_sha256, written_aside

PACKAGES = ("kapdist", "ffcv", "numpy", "opencv-python", "pillow")
NAMED = 20  # how many bad images a message names


def write(
    source: str,
    out: Path,
    *,
    split: str = "train",
    skip_unreadable: bool = False,
    max_side: int | None = None,
    jpeg_quality: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a source, by name or a folder of class folders, to a beton; return its manifest's summary."""
    return write_beton(
        make_source(source, split),
        out,
        skip_unreadable=skip_unreadable,
        max_side=max_side,
        jpeg_quality=jpeg_quality,
        num_workers=num_workers,
        progress=progress,
    )


def write_beton(
    source: Source,
    out: Path,
    *,
    max_side: int | None = None,
    jpeg_quality: int | None = None,
    skip_unreadable: bool = False,
    num_workers: int = 0,
    timeout_seconds: float = 600.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write every image of a source to `out` (FFCV) and `out`.json (the manifest), in the source's order.

    Args:
        max_side: larger images are shrunk to this longer side, pixels (OpenCV INTER_AREA, as FFCV does).
        jpeg_quality: 1 to 100 stores JPEG, encoded afresh by OpenCV; None stores raw pixels.
        skip_unreadable: leave unreadable images out and list them in the manifest, instead of refusing.
        num_workers: processes; 0 takes the CPUs that this process may use.
        timeout_seconds: longest time in which no worker begins another image.
        progress: called with (images done, images in all).

    Returns:
        The manifest's summary.

    Raises:
        InputError: unreadable images (all of them are reported together), or nothing to write.
        WriterError: a worker process died or stopped; names the image.
    """
    check_options(max_side, jpeg_quality)
    out = Path(out)
    options: dict[str, Any] = {"max_side": max_side, "jpeg_quality": jpeg_quality, "progress": progress}
    options |= {"num_workers": num_workers or usable_cpus(), "timeout_seconds": timeout_seconds}
    with written_aside(out) as aside:
        indices = range(len(source))
        bad = write_images(source, aside, indices, **options)
        if bad:
            if not skip_unreadable or len(bad) == len(source):
                raise unreadable(source, bad)
            # Rare, and cheaper than decoding every image twice to know before.
            write_images(source, aside, [index for index in indices if index not in bad], **options)
        manifest = describe(source, aside, bad, max_side, jpeg_quality)
    write_manifest(out, manifest)
    return manifest.summary()


def check_options(max_side: int | None, jpeg_quality: int | None) -> None:
    if max_side is not None and not 1 <= max_side <= 65535:
        raise InputError("max side", "1 to 65535 pixels", str(max_side))
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise InputError("JPEG quality", "1 to 100", str(jpeg_quality))


def unreadable(source: Source, bad: dict[int, str]) -> InputError:
    named = [f"{source.image_name(index)} ({reason})" for index, reason in sorted(bad.items())[:NAMED]]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    expected = "readable images (or --skip-unreadable)"
    return InputError(source.name, expected, f"{len(bad)} unreadable: {', '.join(named)}{more}")


def describe(
    source: Source, path: Path, bad: dict[int, str], max_side: int | None, jpeg_quality: int | None
) -> Manifest:
    layout = read_layout(path)
    sums = checksums(stored_bytes(path), layout.offsets, layout.sizes)
    shapes = list(zip(layout.heights.tolist(), layout.widths.tolist(), strict=True))
    return Manifest(
        source=source.name,
        num_images=len(sums),
        class_names=tuple(source.class_names),
        per_class=tuple(np.bincount(layout.labels, minlength=len(source.class_names)).tolist()),
        smallest=min(shapes, key=lambda shape: shape[0] * shape[1]),
        largest=max(shapes, key=lambda shape: shape[0] * shape[1]),
        encoding="raw" if jpeg_quality is None else f"jpeg quality {jpeg_quality}",
        max_side=max_side,
        skipped=tuple({"image": source.image_name(index), "reason": bad[index]} for index in sorted(bad)),
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        layout_sha256=layout.sha256,
        fingerprint=content_fingerprint(sums, layout.labels, tuple(source.class_names)),
        packages=package_versions(PACKAGES),
        checksums=sums,
    )
