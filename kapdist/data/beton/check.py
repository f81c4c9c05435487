"""`kapdist data check`: everything that can be verified of a beton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton.layout import BetonInfo, DamagedImageError, open_with_manifest
from kapdist.data.beton.writer import Progress
from kapdist.data.load.pixels import CENTRE_CROP, Recipe
from kapdist.data.load.retouch import make_retouch
from kapdist.data.load.simplejpeg import Images
from kapdist.data.load.storage import StoredFile
from kapdist.data.load.workers import Workers
from kapdist.environment import usable_cpus
from kapdist.errors import InputError
from kapdist.run.files import file_sha256

BATCH, SIDE = 256, 8
NAMED = 20  # how many damaged images a message names


def check(path: Path) -> dict[str, Any]:
    """Verify a beton in full; return its manifest's summary as JSON values."""
    return check_beton(path)


def check_beton(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Verify the tables, every image's checksum, that every image decodes, and the file's sha256.

    Returns:
        The manifest's summary.

    Raises:
        InputError: names the file and the first damaged images.
    """
    info, manifest = open_with_manifest(Path(path))
    bad = damaged_images(info, progress)
    if bad:
        names = ", ".join(map(str, bad[:NAMED])) + (", ..." if len(bad) > NAMED else "")
        raise InputError(info.path, "images as they were written", f"{len(bad)} damaged: image {names}")
    sha256 = file_sha256(info.path)
    if sha256 != manifest.sha256:
        raise InputError(info.path, f"sha256 {manifest.sha256} (its manifest)", f"{sha256} (images are whole)")
    return manifest.summary()


def damaged_images(info: BetonInfo, progress: Progress | None) -> list[int]:
    """Return the ids of images whose bytes changed or which do not decode."""
    workers, recipe, bad = Workers(usable_cpus()), Recipe(CENTRE_CROP), []
    # A loader's own decoder, so that what passes here decodes there; it compares the checksums first.
    images = Images(info, recipe, 0, SIDE, make_retouch(recipe), StoredFile(info.layout))
    try:
        for start in range(0, info.num_images, BATCH):
            ids = np.arange(start, min(start + BATCH, info.num_images))
            if not decodes(images, ids, workers):
                bad += [int(one[0]) for one in np.split(ids, len(ids)) if not decodes(images, one, workers)]
            if progress:
                progress(int(ids[-1]) + 1, info.num_images)
    finally:
        workers.close()
    return bad


def decodes(images: Images, ids: np.ndarray, workers: Workers) -> bool:
    out = np.empty((len(ids), SIDE, SIDE, 3), np.uint8)
    try:
        workers.run(lambda worker, where: images.fill(ids[where], out[where]), len(ids))
    except DamagedImageError:
        return False
    return True
