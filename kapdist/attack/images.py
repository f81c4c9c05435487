"""The images under attack, from a beton: the only place of the attack that knows kapdist.data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kapdist.config import Config, DataConfig
from kapdist.config.fields import SIDES
from kapdist.config.images import CENTER, SHAPE, ImagesConfig
from kapdist.data.load.tensors import Tensors, is_tensors
from kapdist.errors import InputError
from kapdist.models.zoo import Stated
from kapdist.records.attack_plan import AttackPlan, PlannedData
from kapdist.run.paths import RunDir

if TYPE_CHECKING:  # FFCV takes seconds to import; whoever brings images of their own does without
    from kapdist.data.beton.layout import BetonInfo

TO_SIZE = (
    f"square images of one size, of {SIDES[0]} to {SIDES[-1]:,} pixels a side, or how they come to the model's, "
    "as neither a run's config nor the model says it (such as data.resolution=224 data.crop=center "
    "data.crop_ratio=0.875 data.interpolation=bilinear)"
)


@dataclass(frozen=True)
class ImageSet:
    """What an attack plan needs to know about a beton."""

    data: PlannedData
    num_images: int
    class_names: tuple[str, ...]
    """In the order in which the labels count."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def describe_images(
    wanted: ImagesConfig, config: Config | None, run: Path | None = None, stated: Stated | None = None
) -> ImageSet:
    """Read what a beton holds, and how its images are brought to the model's size: as is written, else as the run's
    config says, else as the model itself states.

    Args:
        run: whose classes those of the beton are to be.

    Raises:
        InputError: no beton is named, it is damaged, it has other classes, or nothing says its images' size.
    """
    from kapdist.data.beton.classes import classes_of, with_classes
    from kapdist.data.beton.layout import open_beton

    path = wanted.beton
    if path is not None and is_tensors(path):
        return describe_tensors(path)
    if path is None:
        if config is None:
            expected = "a beton with the images (data=FILE.beton), as this is no run of kapdist"
            raise InputError("data", expected, "none")
        path = config.data.validation
    info = open_beton(path)
    shape = shape_of(wanted, config, stated, info)
    own = info.class_names
    if config is not None and run is not None and (known := classes_of(RunDir(run), config)):
        info = with_classes(info, known, wanted.classes or config.data.classes)
    mapped = info.class_names if info.class_names != own else None
    found = {"path": path.resolve(), "fingerprint": info.fingerprint, "classes": mapped}
    data = PlannedData.model_validate(found | shape)
    return ImageSet(data, info.num_images, info.class_names)


def shape_of(wanted: ImagesConfig, config: Config | None, stated: Stated | None, info: BetonInfo) -> dict[str, Any]:
    """Return how images come to size, for PlannedData.

    Raises:
        InputError: nothing says it, or images that are to be taken as they are do not have it.
    """
    from kapdist.data.beton.layout import check_side

    if config is not None:
        base = config.data.model_dump(include=SHAPE)
    else:
        base = as_stated(stated) if stated else as_they_are(info)
    shape = wanted.over(base)
    whole = shape["crop"] == "none"
    if "resolution" not in shape or not (whole or "crop_ratio" in shape):
        raise InputError(info.path, TO_SIZE, f"images {info.size_in_words}")
    if whole:
        check_side(info, shape["resolution"])
    return {"crop_ratio": 1.0} | shape


def as_stated(stated: Stated) -> dict[str, Any]:
    return {
        "resolution": stated.resolution,
        "crop": CENTER,
        "crop_ratio": stated.crop_ratio,
        "interpolation": stated.interpolation,
    }


def as_they_are(info: BetonInfo) -> dict[str, Any]:
    """Return the shape of square images of one size, which need nothing; of others nothing is known."""
    if info.height is None or info.height != info.width or info.height not in SIDES:
        return {}
    return {"resolution": info.height, "crop": "none", "crop_ratio": 1.0}


def describe_tensors(path: Path) -> ImageSet:
    """Read what a file of tensors holds; its labels count in the classes of whatever model."""
    file = Tensors(path)
    data = PlannedData(
        path=path.resolve(),
        fingerprint=file.fingerprint,
        resolution=file.resolution,
        crop="none",
        crop_ratio=1.0,
    )
    return ImageSet(data, file.num_images, file.class_names)


def check_other_run(place: str, run: Path, config: Config, image_set: ImageSet) -> None:
    """Refuse another run to which the images' labels would mean other classes; one that tells more apart will do.

    Raises:
        InputError: names the first class that differs.
    """
    from kapdist.data.beton.classes import ClassList, classes_of, first_difference

    known, asked = classes_of(RunDir(run), config), image_set.class_names
    if known and not is_tensors(image_set.data.path) and known.names[: len(asked)] != asked:
        whose = ClassList(asked, f"the images of {image_set.data.path}")
        raise InputError(place, *first_difference(known.names, whose, part=False))


def read_chunks(plan: AttackPlan, chunks: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images of each chunk, (batch, 3, height, width), float32 in [0, 1], and their labels, int64.

    Raises:
        InputError: the beton is not the one that was planned with, or a label is beyond the model's classes.
    """
    for images, labels in beton_batches(plan, [list(plan.chunk_images(chunk)) for chunk in chunks]):
        check_images(plan, images, labels)
        yield images, labels


def beton_batches(plan: AttackPlan, batches: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    asked = [np.asarray(ids, dtype=np.int64) for ids in batches]
    if is_tensors(plan.data.path):
        file = Tensors(plan.data.path)
        check_fingerprint(plan, file.fingerprint)
        yield from file.batches(asked)
        return
    from kapdist.data.beton.classes import ClassList, with_classes
    from kapdist.data.beton.layout import open_beton
    from kapdist.data.load.loader import Loader

    info = open_beton(plan.data.path)
    check_fingerprint(plan, info.fingerprint)
    if plan.data.classes is not None:
        info = with_classes(info, ClassList(plan.data.classes, plan.run), "by-name")
    config = DataConfig(
        train=plan.data.path,
        validation=plan.data.path,
        **plan.data.model_dump(include=SHAPE),
    )
    loader = Loader(
        info,
        config,
        training=False,
        seed=0,
        max_batch_size=plan.chunk_size,
        device=torch.device("cpu"),
        num_workers=1,
        channels_last=False,  # the library calls .view on images
    )
    for batch, ids in zip(loader.batches(asked), asked, strict=True):
        assert np.array_equal(batch.indices, ids), "the loader gave other images than it was asked for"
        yield batch.images, batch.labels


def check_fingerprint(plan: AttackPlan, found: str) -> None:
    if found != plan.data.fingerprint:
        name = "file" if is_tensors(plan.data.path) else "beton"
        expected = f"the {name} that was planned with (fingerprint {plan.data.fingerprint[:12]})"
        raise InputError(plan.data.path, expected, f"fingerprint {found[:12]}")


def check_images(plan: AttackPlan, images: Tensor, labels: Tensor) -> None:
    if not images.isfinite().all() or images.min() < 0 or images.max() > 1:
        found = f"values from {images.min().item():g} to {images.max().item():g}"
        raise InputError(plan.data.path, "images in [0, 1]", found)
    if labels.min() < 0 or labels.max() >= plan.model.num_classes:
        found = f"labels from {labels.min().item()} to {labels.max().item()}"
        raise InputError(plan.data.path, f"labels of the model's {plan.model.num_classes} classes", found)
