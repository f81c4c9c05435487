"""The rows of a chunk: one Parquet file per chunk, one row per image.

    image, label, clean_prediction    int
    broken_by                         stage that broke the image; null: misclassified, or robust
    broken_eps                        eps of that stage
    <stage>_broke                     bool; null: not attacked (misclassified, or broken before)
    <stage>_norm                      of the image that the attack handed back; 0: it gave up
    <stage>_prediction                for that image
    clean_draws_correct, clean_majority, adversarial_draws_correct, adversarial_majority
                                      of re-scoring: right draws, class of most draws; null: not re-scored
    chunk_forwards, chunk_backwards   of the whole chunk, a list with one number per stage: images that passed
    chunk_library_forwards, chunk_library_backwards     what the library asked for, had nothing been left out
    chunk_stage_seconds               time of each stage on the whole chunk
    chunk_rescore_forwards, chunk, chunk_seconds, plan, kapdist

A stage is an attack at one eps: its name, or name@eps where there are several. Passes and seconds belong to a
chunk, not to an image (an attack runs on the survivors as one batch), so every row of a chunk repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from torch import Tensor

from kapdist.attack.chunk import AttackOutcome, ChunkOutcome
from kapdist.records.attack_plan import AttackPlan
from kapdist.attack.rescore import Votes
from kapdist.errors import InputError
from kapdist.records.sealed import DamagedError, read_table

PASSES = ("forwards", "backwards", "library_forwards", "library_backwards")


def chunk_table(plan: AttackPlan, chunk: int, labels: Tensor, outcome: ChunkOutcome) -> pl.DataFrame:
    """Return the rows of a chunk in the order of the plan's images."""
    broken_by, broken_eps = breakers(outcome.attacks, len(labels))
    columns = {
        "image": pl.Series(plan.chunk_images(chunk), dtype=pl.Int64),
        "label": integers(labels),
        "clean_prediction": integers(outcome.clean_prediction),
        "broken_by": pl.Series(broken_by, dtype=pl.String),
        "broken_eps": pl.Series(broken_eps, dtype=pl.Float64),
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


def integers(values: Tensor) -> pl.Series:
    return pl.Series(values.cpu().numpy(), dtype=pl.Int32)


def is_done(path: Path, plan: AttackPlan, chunk: int) -> bool:
    """Tell whether a file holds this chunk of this plan; a damaged one does not count.

    Raises:
        InputError: it holds a chunk of another plan, which is not overwritten.
    """
    if not path.exists():
        return False
    try:
        table = read_table(path, ["plan", "chunk", "image"])
    except DamagedError:
        return False
    if table["plan"].unique().to_list() != [plan.fingerprint]:
        raise InputError(path, f"a chunk of this plan ({plan.fingerprint[:12]})", "one of another plan")
    return tuple(table["image"]) == plan.chunk_images(chunk) and set(table["chunk"]) == {chunk}
