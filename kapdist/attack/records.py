"""The rows of a chunk: one Parquet file per chunk, one row per image.

    image, label, clean_prediction    int
    broken_by                         name of the attack that broke the image; null: misclassified, or robust
    <attack>_broke                    bool; null: not attacked (misclassified, or broken before)
    <attack>_norm                     of the image that the attack handed back; 0: it gave up
    <attack>_prediction               for that image
    <attack>_chunk_forwards           images that passed forward for this attack in the whole chunk
    <attack>_chunk_backwards          the same backward
    <attack>_chunk_seconds            time of this attack on the whole chunk
    chunk, chunk_seconds, plan, kapdist

Passes and seconds belong to a chunk, not to an image (an attack runs on the survivors as one batch), so every row
of a chunk repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from torch import Tensor

from kapdist.attack.plan import AttackPlan
from kapdist.attack.stock import AttackOutcome, ChunkOutcome
from kapdist.errors import InputError
from kapdist.rundir import written_aside


def chunk_table(plan: AttackPlan, chunk: int, labels: Tensor, outcome: ChunkOutcome) -> pl.DataFrame:
    """Return the rows of a chunk in the order of the plan's images."""
    columns = {
        "image": pl.Series(plan.chunk_images(chunk), dtype=pl.Int64),
        "label": integers(labels),
        "clean_prediction": integers(outcome.clean_prediction),
        "broken_by": pl.Series(breakers(outcome.attacks, len(labels)), dtype=pl.String),
    }
    constants: dict[str, pl.Expr] = {}
    for attack in outcome.attacks:
        columns |= image_columns(attack)
        constants |= chunk_columns(attack)
    constants |= {
        "chunk": pl.lit(chunk, pl.Int32),
        "chunk_seconds": pl.lit(outcome.seconds, pl.Float64),
        "plan": pl.lit(plan.fingerprint),
        "kapdist": pl.lit(plan.packages["kapdist"], pl.String),
    }
    return pl.DataFrame(columns).with_columns(**constants)


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


def chunk_columns(attack: AttackOutcome) -> dict[str, pl.Expr]:
    return {
        f"{attack.name}_chunk_forwards": pl.lit(attack.forwards, pl.Int64),
        f"{attack.name}_chunk_backwards": pl.lit(attack.backwards, pl.Int64),
        f"{attack.name}_chunk_seconds": pl.lit(attack.seconds, pl.Float64),
    }


def breakers(attacks: Sequence[AttackOutcome], num_images: int) -> list[str | None]:
    names: list[str | None] = [None] * num_images
    for attack in attacks:
        for row in attack.broke.nonzero().squeeze(1).tolist():
            names[row] = attack.name
    return names


def integers(values: Tensor) -> pl.Series:
    return pl.Series(values.cpu().numpy(), dtype=pl.Int32)


def write_table(table: pl.DataFrame, path: Path) -> None:
    with written_aside(path) as aside:
        table.write_parquet(aside)


def is_done(path: Path, plan: AttackPlan, chunk: int) -> bool:
    """Tell whether a file holds this chunk of this plan; a damaged one does not count.

    Raises:
        InputError: it holds a chunk of another plan, which is not overwritten.
    """
    if not path.exists():
        return False
    try:
        table = pl.read_parquet(path, glob=False, columns=["plan", "chunk", "image"])
    except Exception:  # whatever the damaged bytes lead polars to
        return False
    if table["plan"].unique().to_list() != [plan.fingerprint]:
        raise InputError(path, f"a chunk of this plan ({plan.fingerprint[:12]})", "one of another plan")
    return tuple(table["image"]) == plan.chunk_images(chunk) and set(table["chunk"]) == {chunk}
