"""What lies in corruptions/<name>/: plan.json, and summary.json, which its cells add up to.

A cell is one kind at one severity on all images: the unit of work and of resume.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from kapdist.config.fields import Interpolation
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, check_models
from kapdist.records.planned import read_planned
from kapdist.records.record import Count, Exact, Record, read_record
from kapdist.records.sealed import read_unit
from kapdist.run.files import fingerprint
from kapdist.run.paths import CorruptionsDir
from kapdist.statistics.intervals import Proportion, Resampled

CLEAN, GAUSSIAN, UNIFORM = "clean", "random_gaussian", "random_uniform"


RANDOM = (GAUSSIAN, UNIFORM)


NOT_ASKED = "not asked"


# Of an attack alone: no image under a corruption depends on it. The norm and every eps that count are in the cells.
NOT_OURS = ("norm", "eps", "smaller_eps", "version", "attacks", "settings", "screen", "compact", "rescore")


COLUMNS = ("image", "label", "prediction", "kind", "severity", "level", "plan", "seconds")
"""Of the file of a cell; that of a published set has `contents` too, the sha256 of its images' bytes."""


class Shape(Record):
    """How images come to the model's size; None: it decides none of their pixels."""

    resolution: int
    crop: str
    """none of a published set's images that are shown whole."""
    crop_ratio: float | None = None
    interpolation: Interpolation | None = None

    def __str__(self) -> str:
        crop = "no crop" if self.crop_ratio is None else f"crop_ratio {self.crop_ratio:.4g}"
        return ", ".join([f"{self.resolution} pixels", crop, *([self.interpolation] if self.interpolation else [])])


class Cell(Exact):
    """One kind at one severity, on all images."""

    kind: str
    severity: int
    """1 to 5; of random noise the place in its list, from 1; 0 of the clean images."""
    level: float | None = None
    """Of random noise: its standard deviation, or its eps."""
    norm: Literal["Linf", "L2", "L1"] | None = None
    source: str | None = None
    """The published set whose own images these are; None: ours, made from the attack's."""
    files: str | None = None
    """Of a published set: fingerprint of the images' names, sizes and labels."""

    @property
    def name(self) -> str:
        return f"{self.source}-{self.kind}-{self.severity}" if self.source else f"{self.kind}-{self.severity}"

    def identity(self) -> dict[str, Any]:
        """Return JSON values; those of our own cells have no trace of published sets."""
        return self.model_dump(mode="json", exclude=set() if self.source else {"source", "files"})


class PublishedPlan(Exact):
    """A published set: which of its images, and how its classes are the model's."""

    name: str
    title: str
    folder: Path
    fingerprint: str
    """Of the files of all cells."""
    images_sha256: str
    num_available: int
    """Images of a cell."""
    side: int | None
    """Pixels of its images, shown as they are where the model's are as many; None: photographs of any size."""
    classes: tuple[int, ...]
    """The model's class for each of the set's."""
    matched: Literal["by-name", "by-index"]
    masked: bool
    """The prediction is made among `classes` alone."""
    uncounted: tuple[str, ...]
    """Kinds that no mean counts."""
    interpolation: Interpolation = "area"
    """How images are resized that are not of the model's side; of older plans always by area, whatever runs say."""
    images: tuple[int, ...] = Field(min_length=1)
    """Numbers in the set, whose images are sorted by label and name or stand in its arrays' order."""


class CorruptionPlan(Exact):
    """One model under corruptions, to the last detail that decides a prediction."""

    format: Literal[1] = 1
    subject: AttackPlan
    """Model, images, noise, seed, device: as an attack plans them, with an empty list of attacks."""
    published: PublishedPlan | None = None
    cells: tuple[Cell, ...]
    side: int
    """Side of the published set whose constants are taken: 32, 64 or 224."""
    frost: str
    """The pictures of frost: "drawn", the sha256 of photographs, or "not asked"."""
    frost_folder: Path | None
    libraries: dict[str, str]
    """Versions of what the filters and files come from."""
    notes: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Return what decides the predictions, JSON values: no names, no places."""
        subject = self.subject.identity()
        values = self.model_dump(mode="json", exclude={"subject", "published", "cells", "frost_folder", "notes"})
        values |= {"subject": {key: value for key, value in subject.items() if key not in NOT_OURS}}
        if self.published:
            values["published"] = self.published.model_dump(mode="json", exclude={"folder", "images"})
            if self.published.interpolation == "area":
                del values["published"]["interpolation"]
        return values | {"cells": [cell.identity() for cell in self.cells]}

    def subject_of(self, cell: Cell) -> AttackPlan:
        """Return the plan with the images that a cell has, in chunks of the same size."""
        if cell.source is None:
            return self.subject
        assert self.published is not None
        images = self.published.images
        data = self.subject.data.model_copy(update={"path": self.published.folder})
        return self.subject.model_copy(update={"images": images, "num_images": len(images), "data": data})

    @property
    def shape(self) -> Shape:
        """Of our own cells."""
        data = self.subject.data
        if data.crop == "none":
            return Shape(resolution=data.resolution, crop=data.crop)
        return Shape.model_validate(data.model_dump(include=set(Shape.model_fields)))

    @property
    def published_shape(self) -> Shape | None:
        """Of the published set's: photographs are cropped as ours, what has a side of its own is shown whole."""
        if self.published is None:
            return None
        side, interpolation = self.published.side, self.published.interpolation
        if side is None:
            return self.shape.model_copy(update={"interpolation": interpolation})
        resolution = self.subject.data.resolution
        resized = interpolation if side != resolution else None
        return Shape(resolution=resolution, crop="none", interpolation=resized)

    def cells_of(self, source: str | None) -> list[Cell]:
        """Return the corrupted cells of one source, those that are counted in its means and the others."""
        return [cell for cell in self.cells if cell.source == source and cell.kind not in (CLEAN, *RANDOM)]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())


def read_plan(directory: CorruptionsDir) -> CorruptionPlan:
    """Read the plan of a directory.

    Raises:
        InputError: there is none, it is not one, or its model had its noise before its average.
    """
    plan = read_planned(CorruptionPlan, directory, "a directory of `kapdist attack corruptions`")
    check_models(plan.subject, directory.plan)
    if plan.published and fingerprint(list(plan.published.images)) != plan.published.images_sha256:
        expected = f"published images with sha256 {plan.published.images_sha256[:12]}"
        raise InputError(directory.plan, expected, "another list")
    return plan


def read_cell(directory: CorruptionsDir, plan: CorruptionPlan, cell: Cell) -> pl.DataFrame | None:
    """Return the rows of a cell that is done; a damaged file does not count.

    Raises:
        InputError: the file belongs to another plan, and is not overwritten.
    """
    columns = (*COLUMNS, "contents") if cell.source else COLUMNS
    images = plan.subject_of(cell).images
    table = read_unit(directory.cell(cell.name), columns, "cell", plan.fingerprint, images)
    if table is None or table.select("kind", "severity").unique().rows() != [(cell.kind, cell.severity)]:
        return None
    return table


class CellSummary(Record):
    """One kind at one severity."""

    severity: int
    level: float | None
    num_correct: Count
    accuracy: Proportion
    seconds: float
    contents: str | None = None
    """Of a published set: sha256 of the images' bytes, in order."""


class KindSummary(Record):
    """One kind: its severities and their mean, over the same images."""

    kind: str
    severities: tuple[CellSummary, ...]
    mean_accuracy: Resampled
    corruption_error: float | None
    """Sum of the errors over that of the reference run (CE); None without one, or where that is never wrong."""


class PublishedSummary(Record):
    """What a model makes of a published set: its own images, and no mean has ours beside them."""

    name: str
    title: str
    fingerprint: str
    """Of the files' names, sizes and labels; each cell has that of the bytes."""
    images_sha256: str
    shape: Shape | None = None
    """None in older summaries, as of our own."""
    num_images: int = Field(ge=1)
    num_available: int
    matched: str
    num_masked_to: int | None
    """Classes whose logits count, where those of all others are masked."""
    kinds: tuple[KindSummary, ...]
    """Those of the set's mean, or its photographs."""
    extra: tuple[KindSummary, ...]
    """Others, which no mean counts."""
    mean_corruption_accuracy: Resampled | None
    mean_corruption_error: float | None
    """Relative to the reference run on the same files."""
    mean_corruption_error_alexnet: float | None
    """Relative to AlexNet's published errors: of ImageNet-C's fifteen kinds at all severities."""


class Reference(Record):
    """The run that errors are stated relative to."""

    run: str
    weights_sha256: str
    plan_fingerprint: str


class CorruptionSummary(Record):
    """summary.json."""

    format: Literal[1] = 1
    name: str
    run: str
    plan_fingerprint: str
    weights_sha256: str
    data_fingerprint: str
    images_sha256: str
    shape: Shape | None = None
    """None in older summaries."""
    num_images: int = Field(ge=1)
    noise: str
    eot: int
    seed: int
    norm: str
    side: int
    frost: str
    num_clean_correct: Count
    clean_accuracy: Proportion
    kinds: tuple[KindSummary, ...]
    random_noise: tuple[KindSummary, ...]
    """Plain noise; `level` is its standard deviation or its eps. Not part of any mean."""
    mean_corruption_accuracy: Resampled | None
    """Mean over kinds of the mean over severities (mCA); None without any kind."""
    mean_corruption_error: float | None
    """Mean over kinds of their errors relative to the reference's (mCE); below 1 is better than the reference."""
    reference: Reference | None
    published: PublishedSummary | None = None
    seconds: float
    device: str
    packages: dict[str, str | None]
    notes: tuple[str, ...]


def read_corruption_summary(path: Path) -> CorruptionSummary:
    """Read the summary of a run under corruptions.

    Raises:
        InputError: the file is none.
    """
    return read_record(CorruptionSummary, path, "kapdist attack corruptions writes it again")
