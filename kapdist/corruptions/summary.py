"""Cells -> records.parquet, summary.json and summary.csv: integer counts, then shares with their intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kapdist.corruptions.alexnet import ALEXNET_ERRORS, SEVERITIES
from kapdist.errors import InputError
from kapdist.records.attacked import check_weights
from kapdist.records.corruptions import (
    CLEAN,
    RANDOM,
    Cell,
    CellSummary,
    CorruptionPlan,
    CorruptionSummary,
    KindSummary,
    PublishedSummary,
    Reference,
    read_cell,
    read_corruption_summary,
    read_plan,
)
from kapdist.records.sealed import write_json, write_table
from kapdist.run.files import write_atomic
from kapdist.run.paths import CorruptionsDir, RunDir
from kapdist.statistics.intervals import Proportion, Resampled, resampled, wilson

CSV_COLUMNS = ("kind", "severity", "level", "num_images", "num_correct", "accuracy", "low", "high", "source")
OURS = "ours"
"""The source of cells whose images kapdist corrupts itself."""


def write_summary(
    directory: CorruptionsDir, plan: CorruptionPlan, reference: CorruptionSummary | None
) -> CorruptionSummary:
    """Add the cells up and write all results; they are made again from the cells at every call.

    Raises:
        RuntimeError: a cell is missing.
    """
    tables = {cell.name: read_cell(directory, plan, cell) for cell in plan.cells}
    if missing := [name for name, table in tables.items() if table is None]:
        raise RuntimeError(f"{directory.root}: {', '.join(missing)} not done")
    found = {name: table for name, table in tables.items() if table is not None}
    summary = summarise(plan, found, reference)
    write_table(pl.concat([rows_of(plan, cell, found[cell.name]) for cell in plan.cells]), directory.records)
    write_atomic(directory.table, csv_text(summary))
    write_json(directory.summary, summary.describe())
    return summary


def rows_of(plan: CorruptionPlan, cell: Cell, table: pl.DataFrame) -> pl.DataFrame:
    """Return a cell's rows, beside a published set with the source of its images; `image` counts in that."""
    rows = table.drop("seconds", "contents", strict=False)
    return rows.with_columns(source=pl.lit(cell.source or OURS)) if plan.published else rows


def summarise(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], reference: CorruptionSummary | None
) -> CorruptionSummary:
    subject, cells = plan.subject, plan.cells_of(None)
    kinds = summarise_kinds(plan, tables, cells, reference.kinds if reference else None)
    random = summarise_kinds(plan, tables, [cell for cell in plan.cells if cell.kind in RANDOM], None)
    clean = summarise_cell(tables[Cell(kind=CLEAN, severity=0).name])
    packages = subject.packages | plan.libraries
    return CorruptionSummary(
        name=subject.name,
        run=subject.run,
        plan_fingerprint=plan.fingerprint,
        weights_sha256=subject.model.weights_sha256,
        data_fingerprint=subject.data.fingerprint,
        images_sha256=subject.images_sha256,
        shape=plan.shape,
        num_images=subject.num_images,
        noise=subject.noise,
        eot=subject.eot,
        seed=subject.seed,
        norm=subject.norm,
        side=plan.side,
        frost=plan.frost,
        num_clean_correct=clean.num_correct,
        clean_accuracy=clean.accuracy,
        kinds=tuple(kinds),
        random_noise=tuple(random),
        mean_corruption_accuracy=mean_accuracy(plan, tables, cells, "all kinds") if cells else None,
        mean_corruption_error=mean_error(kinds) if reference else None,
        reference=reference_of(reference),
        published=summarise_published(plan, tables, reference),
        seconds=sum(table["seconds"][0] for table in tables.values()),
        device=subject.device,
        packages=packages,
        notes=plan.notes,
    )


def summarise_published(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], reference: CorruptionSummary | None
) -> PublishedSummary | None:
    """Add up the cells of the published set, apart from ours."""
    published = plan.published
    if published is None:
        return None
    cells = plan.cells_of(published.name)
    counted = [cell for cell in cells if cell.kind not in published.uncounted]
    theirs = reference.published if reference else None
    kinds = summarise_kinds(plan, tables, counted, theirs.kinds if theirs else None)
    extra = [cell for cell in cells if cell not in counted]
    corrupted = any(cell.severity for cell in counted)
    return PublishedSummary(
        name=published.name,
        title=published.title,
        fingerprint=published.fingerprint,
        images_sha256=published.images_sha256,
        shape=plan.published_shape,
        num_images=len(published.images),
        num_available=published.num_available,
        matched=published.matched,
        num_masked_to=len(published.classes) if published.masked else None,
        kinds=kinds,
        extra=summarise_kinds(plan, tables, extra, theirs.extra if theirs else None),
        mean_corruption_accuracy=mean_accuracy(plan, tables, counted, published.name) if corrupted else None,
        mean_corruption_error=mean_error(kinds) if theirs and corrupted else None,
        mean_corruption_error_alexnet=alexnet_error(published.name, kinds),
    )


def summarise_kinds(
    plan: CorruptionPlan,
    tables: dict[str, pl.DataFrame],
    cells: list[Cell],
    reference: tuple[KindSummary, ...] | None,
) -> tuple[KindSummary, ...]:
    kinds = dict.fromkeys(cell.kind for cell in cells)
    parts = {kind: [cell for cell in cells if cell.kind == kind] for kind in kinds}
    return tuple(summarise_kind(plan, tables, part, reference) for part in parts.values())


def summarise_kind(
    plan: CorruptionPlan,
    tables: dict[str, pl.DataFrame],
    cells: list[Cell],
    reference: tuple[KindSummary, ...] | None,
) -> KindSummary:
    kind, source = cells[0].kind, cells[0].source
    severities = tuple(summarise_cell(tables[cell.name]) for cell in cells)
    total = plan.subject_of(cells[0]).num_images
    return KindSummary(
        kind=kind,
        severities=severities,
        mean_accuracy=mean_accuracy(plan, tables, cells, f"{source} {kind}" if source else kind),
        corruption_error=corruption_error(kind, severities, reference, total) if reference is not None else None,
    )


def summarise_cell(table: pl.DataFrame) -> CellSummary:
    correct = int((table["prediction"] == table["label"]).sum())
    return CellSummary(
        severity=table["severity"][0],
        level=table["level"][0],
        num_correct=correct,
        accuracy=wilson(correct, len(table)),
        seconds=table["seconds"][0],
        contents=table["contents"][0] if "contents" in table.columns else None,
    )


def mean_accuracy(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], cells: list[Cell], purpose: str
) -> Resampled:
    """Return the mean over cells; images and not cells are what the intervals are over."""
    correct = sum(
        (tables[cell.name]["prediction"] == tables[cell.name]["label"]).to_numpy().astype(int) for cell in cells
    )
    return resampled(np.asarray(correct), len(cells), plan.subject.seed, f"corruptions {purpose}")


def corruption_error(
    kind: str, own: tuple[CellSummary, ...], reference: tuple[KindSummary, ...], total: int
) -> float | None:
    """Return the errors over all severities relative to the reference's, as Hendrycks & Dietterich define CE.

    Raises:
        InputError: the reference saw other bytes under the same names.
    """
    other = next(summary for summary in reference if summary.kind == kind)
    for here, there in zip(own, other.severities, strict=True):
        if here.contents != there.contents:
            expected = f"the images of {kind} {here.severity} that this run was shown (sha256 {here.contents})"
            raise InputError("corruptions.reference", expected, f"sha256 {there.contents}")
    errors = sum(total - cell.num_correct for cell in other.severities)
    return sum(total - cell.num_correct for cell in own) / errors if errors else None


def mean_error(kinds: tuple[KindSummary, ...]) -> float | None:
    """Return the mean over kinds of their errors (mCE); None where one is not defined."""
    errors = [kind.corruption_error for kind in kinds if kind.corruption_error is not None]
    return float(np.mean(errors)) if kinds and len(errors) == len(kinds) else None


def alexnet_error(name: str, kinds: tuple[KindSummary, ...]) -> float | None:
    """Return the mCE that papers state: relative to AlexNet's published errors; None of anything but all of it."""
    complete = all(len(kind.severities) == SEVERITIES for kind in kinds)
    if name != "imagenet-c" or {kind.kind for kind in kinds} != set(ALEXNET_ERRORS) or not complete:
        return None
    return float(np.mean([(1 - kind.mean_accuracy.value) / ALEXNET_ERRORS[kind.kind] for kind in kinds]))


def reference_of(reference: CorruptionSummary | None) -> Reference | None:
    if reference is None:
        return None
    return Reference.model_validate(reference.model_dump(include=set(Reference.model_fields)))


def read_reference(run: Path | None, name: str, plan: CorruptionPlan) -> CorruptionSummary | None:
    """Read the reference run's summary of the same name.

    Raises:
        InputError: there is none, or it was not made on the same images, kinds, severities and constants, or on
            images of another shape, where it says of which; or the run has another plan or weights by now.
    """
    if run is None:
        return None
    directory = RunDir(run).corrupted(name)
    place, path = f"corruptions.reference={run}", directory.summary
    if not path.is_file():
        raise InputError(place, f"a run with {path.relative_to(run)} (kapdist attack corruptions {run})", "none")
    summary = read_corruption_summary(path)
    for what, here, there in comparable(plan, summary):
        if here != there:
            raise InputError(place, f"the same {what} ({here})", str(there))
    check_still(directory, summary, run, place)
    return summary


def check_still(directory: CorruptionsDir, summary: CorruptionSummary, run: Path, place: str) -> None:
    """Refuse a summary that says nothing of its run any more; a plan that cannot be read does not tell."""
    try:
        planned = read_plan(directory)
    except InputError:
        return
    if planned.fingerprint != summary.plan_fingerprint:
        expected = f"a summary of its plan (kapdist attack corruptions {run})"
        raise InputError(place, expected, "one of an earlier plan")
    check_weights(planned.subject, run)


def comparable(plan: CorruptionPlan, summary: CorruptionSummary) -> list[tuple[str, Any, Any]]:
    """Return what two runs must have in common: its name, here, and there."""
    subject = plan.subject
    rows: list[tuple[str, Any, Any]] = [
        ("data", subject.data.fingerprint[:12], summary.data_fingerprint[:12]),
        ("images", subject.images_sha256[:12], summary.images_sha256[:12]),
        ("kinds and severities", names(plan.cells_of(None)), names_in(summary.kinds)),
        ("seed", subject.seed, summary.seed),
        ("constants of side", plan.side, summary.side),
        ("pictures of frost", plan.frost, summary.frost),
    ]
    if plan.cells_of(None) and summary.shape:
        rows.append(("shape of images", plan.shape, summary.shape))
    if plan.published is None:
        return rows
    here, there = plan.published, summary.published
    if there is None:
        return [*rows, ("published set", here.title, "none")]
    if there.shape:
        rows.append(("shape of published images", plan.published_shape, there.shape))
    return [
        *rows,
        ("published set", here.title, there.title),
        ("published kinds and severities", names(plan.cells_of(here.name)), names_in((*there.kinds, *there.extra))),
        ("published images", here.images_sha256[:12], there.images_sha256[:12]),
        ("published files", here.fingerprint[:12], there.fingerprint[:12]),
    ]


def names(cells: list[Cell]) -> str:
    return ", ".join(sorted(f"{cell.kind}-{cell.severity}" for cell in cells))


def names_in(kinds: tuple[KindSummary, ...]) -> str:
    return ", ".join(sorted(f"{kind.kind}-{cell.severity}" for kind in kinds for cell in kind.severities))


def csv_text(summary: CorruptionSummary) -> str:
    """Return one row for the clean images and for each cell, and one for each mean (severity "mean")."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    clean = limits(summary.clean_accuracy)
    writer.writerow([CLEAN, 0, None, summary.num_images, summary.num_clean_correct, *clean, OURS])
    own = summary.num_images, OURS
    writer.writerows(csv_rows(summary.kinds, summary.mean_corruption_accuracy, *own))
    writer.writerows(csv_rows(summary.random_noise, None, *own, means=False))
    if theirs := summary.published:
        kinds = (*theirs.kinds, *theirs.extra)
        writer.writerows(csv_rows(kinds, theirs.mean_corruption_accuracy, theirs.num_images, theirs.name))
    return text.getvalue()


def csv_rows(
    kinds: tuple[KindSummary, ...], mean: Resampled | None, total: int, source: str, *, means: bool = True
) -> Iterator[list[Any]]:
    for kind in kinds:
        for cell in kind.severities:
            yield [kind.kind, cell.severity, cell.level, total, cell.num_correct, *limits(cell.accuracy), source]
        if means:
            yield [kind.kind, "mean", None, total, None, *limits(kind.mean_accuracy), source]
    if mean:
        yield ["all", "mean", None, total, None, *limits(mean), source]


def limits(share: Proportion) -> tuple[float, float, float]:
    return share.value, share.low, share.high
