"""From the outcome of a chunk to its rows, as records/chunks.py has them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from torch import Tensor

from kapdist.attack.chunk import AttackOutcome, ChunkOutcome
from kapdist.attack.rescore import Votes
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.chunks import PASSES


def chunk_table(plan: AttackPlan, chunk: int, labels: Tensor, outcome: ChunkOutcome) -> pl.DataFrame:
    """Return the rows of a chunk in the order of the plan's images."""
    broken_by, broken_eps = breakers(outcome.attacks, len(labels))
    columns = {
        "image": pl.Series(plan.chunk_images(chunk), dtype=pl.Int64),
        "label": integers(labels),
        "clean_prediction": integers(outcome.clean_prediction),
        "broken_by": pl.Series(broken_by, dtype=pl.String),
        "broken_eps": pl.Series(broken_eps, dtype=pl.Float64),
        "smallest": finite(outcome.smallest),
    }
    for attack in outcome.attacks:
        columns |= image_columns(attack)
    columns |= vote_columns("clean", outcome.clean_votes, labels)
    columns |= vote_columns("adversarial", outcome.adversarial_votes, labels)
    return (
        pl.DataFrame(columns)
        .with_columns(**chunk_columns(outcome))
        .with_columns(
            chunk_rescore_forwards=pl.lit(outcome.rescore_forwards, pl.Int64),
            chunk=pl.lit(chunk, pl.Int32),
            chunk_seconds=pl.lit(outcome.seconds, pl.Float64),
            plan=pl.lit(plan.fingerprint),
            kapdist=pl.lit(plan.packages["kapdist"], pl.String),
        )
    )


def image_columns(attack: AttackOutcome) -> dict[str, pl.Series]:
    """Return one attack's columns; null where the image was not attacked."""
    rows = pl.DataFrame(
        {
            "attacked": attack.attacked.cpu().numpy(),
            "broke": attack.broke.cpu().numpy(),
            "norm": attack.norm.cpu().numpy(),
            "prediction": integers(attack.prediction),
        }
    )
    rows = rows.select(pl.when("attacked").then(pl.col("broke", "norm", "prediction")).otherwise(None))
    return {f"{attack.name}_{name}": rows[name] for name in rows.columns}


def vote_columns(kind: str, votes: Votes | None, labels: Tensor) -> dict[str, pl.Series]:
    names = f"{kind}_draws_correct", f"{kind}_majority"
    if votes is None:
        return {name: pl.Series([None] * len(labels), dtype=pl.Int32) for name in names}
    correct = votes.correct(labels.to(votes.counts.device))
    return dict(zip(names, (integers(correct), integers(votes.majority)), strict=True))


def chunk_columns(outcome: ChunkOutcome) -> dict[str, pl.Expr]:
    """Return the lists with a number per stage."""
    columns = {"chunk_stage_seconds": pl.lit(pl.Series([[attack.seconds for attack in outcome.attacks]])).first()}
    for name in PASSES:
        numbers = [getattr(attack, name) for attack in outcome.attacks]
        columns[f"chunk_{name}"] = pl.lit(pl.Series([numbers], dtype=pl.List(pl.Int64))).first()
    return columns


def breakers(attacks: Sequence[AttackOutcome], num_images: int) -> tuple[list[str | None], list[float | None]]:
    """Return the stage that broke each image and its eps."""
    names: list[str | None] = [None] * num_images
    sizes: list[float | None] = [None] * num_images
    for attack in attacks:
        for row in attack.broke.nonzero().squeeze(1).tolist():
            names[row], sizes[row] = attack.name, attack.eps
    return names, sizes


def finite(values: Tensor) -> pl.Series:
    series = pl.Series(values.cpu().numpy(), dtype=pl.Float64)
    return series.set(series.is_infinite(), None)


def integers(values: Tensor) -> pl.Series:
    return pl.Series(values.cpu().numpy(), dtype=pl.Int32)
