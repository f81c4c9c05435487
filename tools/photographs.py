"""Photographs made up: JPEGs in class folders, and a beton of the same files where no FFCV can write one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch.nn import functional as F

from kapdist.data.beton import container
from kapdist.data.beton.checksum import compiled_checksum
from kapdist.data.beton.layout import read_layout
from kapdist.data.beton.manifest import Manifest, content_fingerprint, write_manifest
from kapdist.run.files import file_sha256

JPEG_SIDES, JPEG_QUALITY = (375, 500), 90  # the median of ImageNet's, and ffcv-imagenet's


def photographs(folder: Path, num_images: int, workers: int) -> None:
    """Write JPEGs of smooth noise with some grain, which take about as long as photographs, in class folders."""

    def write(number: int) -> None:
        random = np.random.default_rng(number)
        height, width = JPEG_SIDES
        coarse = torch.from_numpy(random.random((1, 3, 12, 16), np.float32))
        smooth = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
        pixels = 255 * smooth + random.normal(0, 6, smooth.shape).astype(np.float32)
        image = np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8))
        path = folder / f"class-{number % 10}" / f"{number:06d}.jpeg"
        path.write_bytes(simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling="420"))

    for label in range(10):
        (folder / f"class-{label}").mkdir(parents=True)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(num_images)))


def link_copies(folder: Path, copies: int) -> None:
    """Let each file appear so many times, for an epoch that is longer than what was written."""
    for path in list(folder.glob("*/*.jpeg")):
        for copy in range(1, copies):
            path.with_name(f"{path.stem}-{copy}.jpeg").hardlink_to(path)


def as_beton(folder: Path, beton: Path, copies: int = 1) -> None:
    """Write the JPEGs of class folders, byte for byte, as `kapdist data write` does where there is an FFCV.

    Of `copies` of an image the bytes are there once.
    """
    paths = sorted(folder.glob("*/*.jpeg"))
    names = tuple(sorted(path.name for path in folder.iterdir()))
    contents = [path.read_bytes() for path in paths]
    records = np.zeros(len(paths), container.RECORD)
    records["label"] = [names.index(path.parent.name) for path in paths]
    records["size"], records["kept"] = [len(content) for content in contents], 1
    records["height"], records["width"] = JPEG_SIDES
    page = 1 << 21
    start = container.data_start(copies * len(paths), page)
    begins, end = container.place(0, records["size"], page)
    container.begin(beton, len(paths), page)
    with beton.open("r+b") as file:
        for begin, content in zip(begins.tolist(), contents, strict=True):
            file.seek(start + begin)
            file.write(content)
    records, begins = np.tile(records, copies), np.tile(begins, copies)
    container.finish(beton, records, begins, end, start, page)
    sums = np.empty(len(records), np.uint64)
    compiled_checksum()(np.memmap(beton, np.uint8, "r"), start + begins, records["size"].astype(np.int64), sums)
    manifest = Manifest(
        source="bench",
        num_images=len(records),
        class_names=names,
        per_class=tuple(np.bincount(records["label"]).tolist()),
        smallest=JPEG_SIDES,
        largest=JPEG_SIDES,
        encoding=f"jpeg quality {JPEG_QUALITY}",
        max_side=None,
        skipped=(),
        size_bytes=beton.stat().st_size,
        sha256=file_sha256(beton),
        layout_sha256=read_layout(beton).sha256,
        fingerprint=content_fingerprint(sums, records["label"], names),
        packages={},
        checksums=sums,
    )
    write_manifest(beton, manifest)
