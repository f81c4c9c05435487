"""The images under attack, from a beton: the only place of the attack that knows kapdist.data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kapdist.config import Config, DataConfig
from kapdist.config.fields import SIDES, ClassRule
from kapdist.data.load.tensors import Tensors, is_tensors
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, PlannedData
from kapdist.run.paths import RunDir

if TYPE_CHECKING:  # FFCV takes seconds to import; whoever brings images of their own does without
    from kapdist.data.beton.layout import BetonInfo


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
    path: Path | None, config: Config | None, run: Path | None = None, rule: ClassRule | None = None
) -> ImageSet:
    """Read what a beton holds; the run's config, if there is one, says how its images are brought to size.

    Args:
        run: whose classes those of the beton are to be.
        rule: how they are; default: as the run's config says.

    Raises:
        InputError: no beton is named, it is damaged, it has other classes, or nothing says its images' size.
    """
    from kapdist.data.beton.classes import classes_of, with_classes
    from kapdist.data.beton.layout import open_beton

    if path is not None and is_tensors(path):
        return describe_tensors(path)
    if config is None and path is None:
        raise InputError("data", "a beton with the images (data=FILE.beton), as this is no run of kapdist", "none")
    if path is None:
        assert config is not None
        path = config.data.validation
    info = open_beton(path)
    if config is not None:
        section = config.data
        shape = {"resolution": section.resolution, "crop": section.crop, "crop_ratio": section.crop_ratio}
    else:
        shape = {"resolution": side_of(info, path), "crop": "none", "crop_ratio": 1.0}
    own = info.class_names
    if config is not None and run is not None and (known := classes_of(RunDir(run), config)):
        info = with_classes(info, known, rule or config.data.classes)
    mapped = info.class_names if info.class_names != own else None
    found = {"path": path.resolve(), "fingerprint": info.fingerprint, "classes": mapped}
    data = PlannedData.model_validate(found | shape)
    return ImageSet(data, info.num_images, info.class_names)


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


def side_of(info: BetonInfo, path: Path) -> int:
    """Return the side of square images of one size, which a config could have named."""
    if info.height is None or info.height != info.width:
        found = "images of many sizes" if info.height is None else f"{info.height} x {info.width}"
        raise InputError(path, "square images of one size, as no run's config says how to crop", found)
    if info.height not in SIDES:
        raise InputError(path, f"images of {SIDES[0]} to {SIDES[-1]:,} pixels a side", f"{info.height:,}")
    return info.height


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
        **plan.data.model_dump(include={"resolution", "crop", "crop_ratio"}),
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
