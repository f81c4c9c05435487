"""Cells -> records.parquet, summary.json and summary.csv: integer counts, then shares with their intervals."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kapdist.errors import InputError
from kapdist.records.corruptions import (
    CLEAN,
    RANDOM,
    Cell,
    CellSummary,
    CorruptionPlan,
    CorruptionSummary,
    KindSummary,
    Reference,
    read_cell,
    read_corruption_summary,
)
from kapdist.records.sealed import write_json, write_table
from kapdist.run.files import write_atomic
from kapdist.run.paths import CorruptionsDir, RunDir
from kapdist.statistics.intervals import Proportion, Resampled, resampled, wilson

CSV_COLUMNS = ("kind", "severity", "level", "num_images", "num_correct", "accuracy", "low", "high")


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
    write_table(pl.concat(table.drop("seconds") for table in found.values()), directory.records)
    write_atomic(directory.table, csv_text(summary))
    write_json(directory.summary, summary.describe())
    return summary


def summarise(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], reference: CorruptionSummary | None
) -> CorruptionSummary:
    subject = plan.subject
    kinds = [summarise_kind(plan, tables, kind, reference) for kind in kinds_of(plan) if kind not in RANDOM]
    random = [summarise_kind(plan, tables, kind, None) for kind in kinds_of(plan) if kind in RANDOM]
    clean = summarise_cell(tables[Cell(kind=CLEAN, severity=0).name])
    errors = [kind.corruption_error for kind in kinds if kind.corruption_error is not None]
    cells = [cell for cell in plan.cells if cell.kind != CLEAN and cell.kind not in RANDOM]
    packages = subject.packages | plan.libraries
    return CorruptionSummary(
        name=subject.name,
        run=subject.run,
        plan_fingerprint=plan.fingerprint,
        weights_sha256=subject.model.weights_sha256,
        data_fingerprint=subject.data.fingerprint,
        images_sha256=subject.images_sha256,
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
        mean_corruption_error=float(np.mean(errors)) if kinds and len(errors) == len(kinds) else None,
        reference=reference_of(reference),
        seconds=sum(table["seconds"][0] for table in tables.values()),
        device=subject.device,
        packages=packages,
        notes=plan.notes,
    )


def kinds_of(plan: CorruptionPlan) -> list[str]:
    return [kind for kind in dict.fromkeys(cell.kind for cell in plan.cells) if kind != CLEAN]


def summarise_kind(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], kind: str, reference: CorruptionSummary | None
) -> KindSummary:
    cells = [cell for cell in plan.cells if cell.kind == kind]
    severities = tuple(summarise_cell(tables[cell.name]) for cell in cells)
    return KindSummary(
        kind=kind,
        severities=severities,
        mean_accuracy=mean_accuracy(plan, tables, cells, kind),
        corruption_error=corruption_error(kind, severities, reference) if reference else None,
    )


def summarise_cell(table: pl.DataFrame) -> CellSummary:
    correct = int((table["prediction"] == table["label"]).sum())
    return CellSummary(
        severity=table["severity"][0],
        level=table["level"][0],
        num_correct=correct,
        accuracy=wilson(correct, len(table)),
        seconds=table["seconds"][0],
    )


def mean_accuracy(
    plan: CorruptionPlan, tables: dict[str, pl.DataFrame], cells: list[Cell], purpose: str
) -> Resampled:
    """Return the mean over cells; images and not cells are what the intervals are over."""
    correct = sum(
        (tables[cell.name]["prediction"] == tables[cell.name]["label"]).to_numpy().astype(int) for cell in cells
    )
    return resampled(np.asarray(correct), len(cells), plan.subject.seed, f"corruptions {purpose}")


def corruption_error(kind: str, own: tuple[CellSummary, ...], reference: CorruptionSummary) -> float | None:
    """Return the errors over all severities relative to the reference's, as Hendrycks & Dietterich define CE."""
    other = next(summary for summary in reference.kinds if summary.kind == kind)
    errors = sum(reference.num_images - cell.num_correct for cell in other.severities)
    return sum(reference.num_images - cell.num_correct for cell in own) / errors if errors else None


def reference_of(reference: CorruptionSummary | None) -> Reference | None:
    if reference is None:
        return None
    return Reference.model_validate(reference.model_dump(include=set(Reference.model_fields)))


def read_reference(run: Path | None, name: str, plan: CorruptionPlan) -> CorruptionSummary | None:
    """Read the reference run's summary of the same name.

    Raises:
        InputError: there is none, or it was not made on the same images, kinds, severities and constants.
    """
    if run is None:
        return None
    place, path = f"corruptions.reference={run}", RunDir(run).corrupted(name).summary
    if not path.is_file():
        raise InputError(place, f"a run with {path.relative_to(run)} (kapdist attack corruptions {run})", "none")
    summary = read_corruption_summary(path)
    for what, here, there in comparable(plan, summary):
        if here != there:
            raise InputError(place, f"the same {what} ({here})", str(there))
    return summary


def comparable(plan: CorruptionPlan, summary: CorruptionSummary) -> list[tuple[str, Any, Any]]:
    """Return what two runs must have in common: its name, here, and there."""
    subject = plan.subject
    cells = [cell.name for cell in plan.cells if cell.kind not in (CLEAN, *RANDOM)]
    theirs = [f"{kind.kind}-{cell.severity}" for kind in summary.kinds for cell in kind.severities]
    return [
        ("data", subject.data.fingerprint[:12], summary.data_fingerprint[:12]),
        ("images", subject.images_sha256[:12], summary.images_sha256[:12]),
        ("kinds and severities", ", ".join(sorted(cells)), ", ".join(sorted(theirs))),
        ("seed", subject.seed, summary.seed),
        ("constants of side", plan.side, summary.side),
        ("pictures of frost", plan.frost, summary.frost),
    ]


def csv_text(summary: CorruptionSummary) -> str:
    """Return one row for the clean images and for each cell, and one for each mean (severity "mean")."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    total = summary.num_images
    writer.writerow([CLEAN, 0, None, total, summary.num_clean_correct, *limits(summary.clean_accuracy)])
    for kind in (*summary.kinds, *summary.random_noise):
        for cell in kind.severities:
            writer.writerow([kind.kind, cell.severity, cell.level, total, cell.num_correct, *limits(cell.accuracy)])
        if kind in summary.kinds:
            writer.writerow([kind.kind, "mean", None, total, None, *limits(kind.mean_accuracy)])
    if summary.mean_corruption_accuracy:
        writer.writerow(["all", "mean", None, total, None, *limits(summary.mean_corruption_accuracy)])
    return text.getvalue()


def limits(share: Proportion) -> tuple[float, float, float]:
    return share.value, share.low, share.high
