"""Units -> records.parquet, summary.json and summary.csv: integer counts, bounds, radii, shares of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from kapdist.attack.merge import listed
from kapdist.errors import InputError
from kapdist.records.attack_plan import run_of
from kapdist.records.attacked import check_weights
from kapdist.records.certificate import (
    P_A_BINS,
    P_A_QUANTILES,
    CertificatePlan,
    CertificateSummary,
    CertifiedAt,
    SmoothedSummary,
    read_certificate_unit,
)
from kapdist.records.sealed import write_json, write_table
from kapdist.run.files import write_atomic
from kapdist.run.paths import CertificateDir
from kapdist.statistics.intervals import wilson
from kapdist.statistics.smoothing import certified_radius, largest_radius

STEPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
MOST_STEPS = 60
"""Of the radii that accuracies are stated at."""


def merge(directory: CertificateDir, plan: CertificatePlan) -> CertificateSummary:
    """Add the units up and write all results; they are made again from the units at every call.

    Raises:
        InputError: units are missing, or the weights are no longer those that the plan is about.
    """
    check_weights(plan.subject, run_of(directory))
    found = [read_certificate_unit(directory, plan, unit) for unit in plan.units]
    if missing := [unit.number for unit, table in zip(plan.units, found, strict=True) if table is None]:
        expected = f"all {len(plan.units)} units (run the shards again)"
        raise InputError(directory.root, expected, f"none of unit {listed(missing)}")
    units = pl.concat(table for table in found if table is not None)
    records = certificates(plan, units)
    seconds = float(units.group_by("unit").agg(pl.col("seconds").first())["seconds"].sum())
    summary = summarise(plan, records, seconds)
    write_table(records, directory.records)
    write_atomic(directory.table, pl.DataFrame(rows_of(summary)).write_csv())
    write_json(directory.summary, summary.describe())
    return summary


def certificates(plan: CertificatePlan, units: pl.DataFrame) -> pl.DataFrame:
    """Return one row per image and sigma, as records/certificate.py has them."""
    whole = units.group_by("sigma", "image").agg(
        pl.col("label").first(),
        pl.col("selected", "selection_count").drop_nulls().first(),
        pl.col("draws").sum(),
        pl.col("classes", "counts").explode(),
    )
    rows = [certificate(plan, row) for row in whole.sort("sigma", "image").iter_rows(named=True)]
    types = {"label": pl.Int32, "selected": pl.Int32, "predicted": pl.Int32}
    return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)


def certificate(plan: CertificatePlan, row: dict[str, Any]) -> dict[str, Any]:
    """Return the certificate of an image, from its counts in all units (Cohen et al. 2019, algorithm CERTIFY)."""
    counts: dict[int, int] = {}
    for place, number in zip(row["classes"], row["counts"], strict=True):
        counts[place] = counts.get(place, 0) + number
    selected, draws = row["selected"], row["draws"]
    count = counts.get(selected, 0)
    bound = plan.lower_bound(count, draws)
    named = {key: row[key] for key in ("image", "label", "sigma", "selected", "selection_count", "draws")}
    return named | {
        "count": count,
        "label_count": counts.get(row["label"], 0),
        "p_a": count / draws,
        "p_a_low": bound,
        "predicted": selected if bound > 0.5 else None,
        "radius": certified_radius(bound, row["sigma"]),
    }


def summarise(plan: CertificatePlan, records: pl.DataFrame, seconds: float) -> CertificateSummary:
    subject = plan.subject
    radii = stated_radii(float(records["radius"].max()))  # type: ignore[arg-type]
    return CertificateSummary(
        name=subject.name,
        run=subject.run,
        plan_fingerprint=plan.fingerprint,
        weights_sha256=subject.model.weights_sha256,
        data_fingerprint=subject.data.fingerprint,
        images_sha256=subject.images_sha256,
        num_images=subject.num_images,
        noise=subject.noise,
        own_noise=plan.own_noise,
        selection_draws=plan.selection_draws,
        draws=plan.draws,
        alpha=plan.alpha,
        stop_radius=plan.stop_radius,
        looks=plan.looks,
        seed=subject.seed,
        smoothed=tuple(summarise_sigma(plan, sigma, records.filter(sigma=sigma), radii) for sigma in plan.sigmas),
        seconds=seconds,
        device=subject.device,
        packages=subject.packages,
        notes=plan.notes,
    )


def summarise_sigma(
    plan: CertificatePlan, sigma: float, records: pl.DataFrame, radii: list[float]
) -> SmoothedSummary:
    right = records.filter(pl.col("predicted") == pl.col("label"))
    total, shares = len(records), (records["label_count"] / records["draws"]).to_numpy()
    return SmoothedSummary(
        sigma=sigma,
        num_abstained=records["predicted"].null_count(),
        num_correct=len(right),
        accuracy=wilson(len(right), total),
        draw_accuracy=wilson(float(shares.sum()), total),
        average_certified_radius=float(right["radius"].sum()) / total,
        largest_radius=largest_radius(plan.draws, plan.alpha_of_a_look, sigma),
        num_all_agreed=int(((records["count"] == records["draws"]) & (records["draws"] == plan.draws)).sum()),
        p_a_quantiles=tuple(np.quantile(shares, P_A_QUANTILES).tolist()),
        p_a_histogram=tuple(np.histogram(shares, P_A_BINS, (0, 1))[0].tolist()),
        certified=tuple(certified_at(radius, right["radius"], total) for radius in radii),
        num_draws=int(records["draws"].sum()) + total * plan.selection_draws,
    )


def certified_at(radius: float, found: pl.Series, total: int) -> CertifiedAt:
    count = int((found >= radius).sum())
    return CertifiedAt(radius=radius, num_certified=count, accuracy=wilson(count, total))


def stated_radii(largest: float) -> list[float]:
    """Return radii from 0 to beyond the largest, in the finest step of which they are not too many."""
    step = next((step for step in STEPS if largest / step <= MOST_STEPS), largest / MOST_STEPS)
    return [round(step * number, 10) for number in range(math.floor(largest / step) + 2)]


def rows_of(summary: CertificateSummary) -> list[dict[str, float]]:
    """Return one row for each sigma and radius."""
    return [
        {
            "sigma": smoothed.sigma,
            "radius": at.radius,
            "num_images": summary.num_images,
            "num_certified": at.num_certified,
            "certified_accuracy": at.accuracy.value,
            "low": at.accuracy.low,
            "high": at.accuracy.high,
        }
        for smoothed in summary.smoothed
        for at in smoothed.certified
    ]
