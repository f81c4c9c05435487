"""Class folders without splits, cut in two: a share of every class is held out, chosen by its files' names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kapdist.data.sources.folder import ClassFolder
from kapdist.errors import InputError
from kapdist.rng import derive_seed

SIDES = ("train", "val")


def side_of(whole: ClassFolder, split: str, share: float) -> ClassFolder:
    """Return the images of one side, train or val, in the folder's order: every image is on one of the two.

    A function of the files' names, and of no seed: both sides may be written in any order, on any machine.

    Raises:
        InputError: another split; a share that is none; a class of which either side would have no image.
    """
    if split not in SIDES:
        raise InputError("split", f"{' or '.join(SIDES)} with --held-out", split)
    if not 0 < share < 1:
        raise InputError("held out", "a share of each class between 0 and 1, such as 0.2", f"{share:g}")
    held = np.concatenate(list(held_out(whole, share)))
    images = held if split == "val" else np.setdiff1d(np.arange(len(whole)), held)
    return whole.only(np.sort(images), f"{whole.name} ({split}, {share:g} held out)")


def held_out(whole: ClassFolder, share: float) -> Iterator[np.ndarray]:
    """Yield the images of each class that are held out: the first by the hashes of their names."""
    for label, name in enumerate(whole.class_names):
        images = np.flatnonzero(whole.labels == label)
        number = max(1, round(share * len(images)))
        if number >= len(images):
            expected = f"images for both sides of every class, {share:g} of them held out"
            raise InputError(whole.name, expected, f"{len(images)} of {name}")
        hashes = np.array([derive_seed(0, "held out", whole.files[index]) for index in images])
        yield images[np.argsort(hashes, kind="stable")[:number]]
