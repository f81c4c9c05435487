"""A published set beside our own corruptions: which of its images, how its classes are the model's, its chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import kapdist.attack.images as images_of
from kapdist.config import AttackConfig
from kapdist.config.attack import CorruptionsConfig
from kapdist.data.load.still import still
from kapdist.data.sources.published import NATURAL, PublishedSet
from kapdist.data.sources.published_sets import open_published
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.corruptions import Cell, CorruptionPlan, PublishedPlan
from kapdist.rng import permutation
from kapdist.run.files import fingerprint


class Planned(NamedTuple):
    """What is planned of a published set."""

    plan: PublishedPlan
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    """What a reader of the numbers should know."""


def plan_published(config: AttackConfig, subject: AttackPlan, class_names: tuple[str, ...]) -> Planned | None:
    """Return what is planned of the published set that the config names, if it names one.

    Args:
        subject: the model and how its images are brought to size.
        class_names: the model's, as far as they are known.

    Raises:
        InputError: the folder is no such set, has too few images, or its classes or sizes do not fit the model's.
    """
    wanted = config.corruptions
    if wanted.published is None:
        return None
    folder, severities = wanted.published.resolve(), tuple(sorted(wanted.severities))
    found = open_published(folder, wanted.published_set, wanted.published_kinds, severities)
    check_shape(found, subject)
    classes = match_classes(found, class_names, subject.model.num_classes, wanted)
    images = choose(found, config)
    kinds = wanted.published_kinds or found.counted_there()
    cells = tuple(
        Cell(kind=kind, severity=severity, source=found.name, files=files_of(found, kind, severity, images))
        for kind in kinds
        for severity in ((0,) if kind == NATURAL else severities)
    )
    plan = PublishedPlan(
        name=found.name,
        title=found.title,
        folder=folder,
        fingerprint=fingerprint([cell.files for cell in cells]),
        images_sha256=fingerprint(list(images)),
        num_available=len(found),
        side=found.side,
        classes=classes,
        matched="by-index" if found.class_names is None else wanted.published_classes,
        masked=found.masked,
        uncounted=tuple(kind for kind in kinds if kind not in found.kinds),
        interpolation="area" if found.side == subject.data.resolution else subject.data.interpolation,
        images=images,
    )
    return Planned(plan, cells, tuple(notes_on(plan, found, kinds, subject)))


def notes_on(plan: PublishedPlan, found: PublishedSet, kinds: Sequence[str], subject: AttackPlan) -> Iterator[str]:
    title, data = found.title, subject.data
    if found.side is None:
        share = f"the middle {data.crop_ratio:.3g} of the shorter side"
        size = f"resized to {data.resolution} pixels ({data.interpolation})"
        yield f"photographs of {title} are shown as evaluations show images: {share}, {size}"
    elif found.side != data.resolution:
        yield f"images of {title}, {found.side} pixels, are resized to the model's {data.resolution}, not cropped"
    if found.class_names is None:
        yield f"labels of {title} are numbers: the model's classes are taken in their order, as no names tell"
    elif plan.matched == "by-index":
        yield f"the model's classes were taken for those of {title} by their order, not by their names"
    if plan.masked:
        count = len(plan.classes)
        yield f"logits of all classes but the {count} of {title} are masked, as its authors evaluate"
    if plan.num_available != found.published_images:
        cell = "images" if found.side is None else "images of each kind and severity"
        yield f"this {title} has {plan.num_available} {cell}, not the {found.published_images} that were published"
    if missing := [kind for kind in found.kinds if kind not in kinds]:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield f"{title} without {named}: its mean is over fewer kinds than the published one"


def check_shape(found: PublishedSet, subject: AttackPlan) -> None:
    """Refuse photographs of any size for a model of which nothing says how they are cropped."""
    if found.side is None and subject.data.crop == "none":
        expected = f"a run that says how it crops, as the images of {found.title} are of any size"
        raise InputError("corruptions.published", expected, "crop none")


def match_classes(
    found: PublishedSet, class_names: tuple[str, ...], num_classes: int, wanted: CorruptionsConfig
) -> tuple[int, ...]:
    """Return the model's class for each of the set's.

    Raises:
        InputError: names the first class that the model has not, or both numbers of classes.
    """
    if found.class_names is None or wanted.published_classes == "by-index":
        if num_classes != found.num_classes:
            expected = f"a model of the {found.num_classes} classes of {found.title}, as they count by number"
            raise InputError("corruptions.published", expected, f"one of {num_classes}")
        order = found.all_class_names or tuple(map(str, range(num_classes)))
    else:
        order = class_names
    number = {name: index for index, name in enumerate(order)}
    asked = order if found.class_names is None else found.class_names
    if unknown := [name for name in asked if name not in number]:
        expected = f"classes of the model in {found.title} (or corruptions.published_classes=by-index)"
        raise InputError(found.place, expected, f"{unknown[0]!r} ({len(unknown)} such classes)")
    return tuple(number[name] for name in asked)


def choose(found: PublishedSet, config: AttackConfig) -> tuple[int, ...]:
    """Return the images, the same of every cell, chosen by number as an attack chooses those of a beton."""
    num_images = config.num_asked(len(found))
    if num_images is not None and num_images > len(found):
        raise InputError("num_images", f"at least {num_images} images", f"{len(found)} in {found.place}")
    chosen = permutation(len(found), config.seed, "attack images")
    return tuple(sorted(chosen[:num_images].tolist()))


def files_of(found: PublishedSet, kind: str, severity: int, images: tuple[int, ...]) -> str:
    """Return the fingerprint of a cell's names, sizes and labels.

    Raises:
        InputError: an image is not there.
    """
    rows = [
        (found.image_name(kind, severity, i), found.size(kind, severity, i), int(found.labels[i])) for i in images
    ]
    return fingerprint([found.name, rows])


def open_planned(plan: CorruptionPlan, cells: list[Cell]) -> PublishedSet | None:
    """Open the set that cells were planned of.

    Raises:
        InputError: the files of one of them are others by now.
    """
    if plan.published is None or not cells:
        return None
    planned = plan.cells_of(plan.published.name)  # all of them: the first one's folder numbers the images
    kinds = tuple(dict.fromkeys(cell.kind for cell in planned))
    severities = sorted({cell.severity for cell in planned})
    found = open_published(
        plan.published.folder, plan.published.name, () if NATURAL in kinds else kinds, severities
    )
    for cell in cells:
        if files_of(found, cell.kind, cell.severity, plan.published.images) != cell.files:
            expected = f"the files of {cell.kind} {cell.severity} that were planned with"
            raise InputError(plan.published.folder, expected, "others")
    return found


class Chunks:
    """A cell's images, chunk by chunk; `digest` is of all bytes that were read so far."""

    def __init__(self, found: PublishedSet, plan: CorruptionPlan, cell: Cell, pool: ThreadPoolExecutor) -> None:
        assert plan.published is not None
        self.found, self.cell, self.pool = found, cell, pool
        self.subject, self.published = plan.subject_of(cell), plan.published
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (batch, 3, side, side), float32 in [0, 1], and the model's classes of the labels, int64."""
        classes = np.array(self.published.classes, np.int64)
        for chunk in range(self.subject.num_chunks):
            ids = self.subject.chunk_images(chunk)
            pixels = []
            for image, content in self.pool.map(self.image, ids):
                self.digest.update(content)
                pixels.append(image)
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255).contiguous()
            labels = torch.from_numpy(classes[self.found.labels[list(ids)]])
            images_of.check_images(self.subject, images, labels)
            yield images, labels

    def image(self, index: int) -> tuple[np.ndarray, bytes]:
        pixels, content = self.found.image(self.cell.kind, self.cell.severity, index)
        data = self.subject.data
        crop = data.crop if self.found.side is None else "none"
        if pixels.shape[:2] != (data.resolution, data.resolution) or crop != "none":
            pixels = still(pixels, data.resolution, crop, data.crop_ratio, self.published.interpolation)
        return pixels, content


class Among(nn.Module):
    """A classifier that chooses among some classes: their logits alone, in this order."""

    def __init__(self, model: nn.Module, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.classes = model, list(classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.classes]
