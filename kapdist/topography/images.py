"""The images that all runs of one record are shown: some of the first run's validation beton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kapdist.config import Config
from kapdist.data.beton.classes import ClassList, classes_of, first_difference, with_classes
from kapdist.data.beton.layout import check_labels, open_beton
from kapdist.data.load.loader import Loader, read_once
from kapdist.errors import InputError
from kapdist.rng import permutation
from kapdist.run.files import fingerprint
from kapdist.run.paths import RunDir
from kapdist.topography.subject import Subject

DEFAULT_IMAGES = 512
BATCH = 32

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Images:
    """Images (batch, 3, height, width) float32 in [0, 1] with labels, and what tells them from others."""

    batches: Batches
    path: Path
    fingerprint: str
    ids_sha256: str
    class_names: tuple[str, ...]

    @property
    def count(self) -> int:
        return sum(len(labels) for _, labels in self.batches)

    def first(self, count: int) -> Batches:
        """Return the first `count` of them, or all where there are fewer."""
        left, chosen = count, []
        for images, labels in self.batches:
            if left > 0:
                chosen.append((images[:left], labels[:left]))
                left -= len(labels)
        return chosen


def read_images(subject: Subject, asked: int | None, seed: int) -> Images:
    """Read images, drawn by seed, of a run's validation beton as its evaluation takes them.

    Args:
        asked: how many; None takes 512, or all where there are fewer.

    Raises:
        InputError: the beton cannot be read, or has fewer.
    """
    info = open_beton(subject.config.data.validation)
    if known := classes_of(subject.run, subject.config):
        info = with_classes(info, known, subject.config.data.classes)
    check_labels(info, subject.config.model.num_classes)
    if asked is not None and asked > info.num_images:
        raise InputError("--images", f"at most {info.num_images:,}, which {info.path} has", f"{asked:,}")
    count = asked or min(DEFAULT_IMAGES, info.num_images)
    ids = permutation(info.num_images, seed, "topography images")[:count]
    loader = Loader(
        info,
        read_once(subject.config.data),
        training=False,
        seed=subject.config.seed,
        max_batch_size=min(BATCH, count),
        device=torch.device("cpu"),
        channels_last=False,
    )
    parts = np.array_split(ids, -(-count // BATCH))
    batches = [(batch.images.clone(), batch.labels.clone()) for batch in loader.batches(parts)]
    return Images(batches, info.path, info.fingerprint, fingerprint(ids.tolist()), info.class_names)


def check_beside(first: Subject, other: Subject) -> None:
    """Refuse a run that the first one's images mean something else to.

    Raises:
        InputError: names the resolution or the first class that differs.
    """
    place = f"--beside {other.run.root}"
    sides = [subject.config.data.resolution for subject in (first, other)]
    if sides[0] != sides[1]:
        raise InputError(place, f"a run on images of {sides[0]} px, as {first.run.root}", f"{sides[1]} px")
    own, theirs = names_of(first.run, first.config), names_of(other.run, other.config)
    if own and theirs and own != theirs:
        whose = ClassList(own, str(first.run.root))
        raise InputError(place, *first_difference(theirs, whose, part=False))


def names_of(run: RunDir, config: Config) -> tuple[str, ...] | None:
    known = classes_of(run, config)
    return known.names if known else None
