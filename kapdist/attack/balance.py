"""What each chunk is expected to cost, as measured by an earlier attack on these weights and images.

Costs are fixed in the plan, so every shard deals alike (sharding.py); no verdict depends on them, as a chunk is the
same whoever does it.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from kapdist.errors import InputError
from kapdist.records.attack_plan import PlannedData, PlannedModel, read_plan
from kapdist.records.sealed import DamagedError, read_table
from kapdist.run.paths import AttackDir, RunDir


def chunk_costs(
    run: Path, model: PlannedModel, data: PlannedData, images: tuple[int, ...], chunk_size: int
) -> tuple[float, ...]:
    """Return the expected seconds of every chunk, from the costliest earlier attack; empty where there is none."""
    found = [costs for attack in earlier_attacks(run, model, data) if (costs := image_seconds(attack)) is not None]
    if not found:
        return ()
    costs = max(found, key=lambda table: table["seconds"].sum())
    known = dict(costs.iter_rows())
    average = sum(known.values()) / len(known)
    parts = (images[start : start + chunk_size] for start in range(0, len(images), chunk_size))
    return tuple(round(sum(known.get(image, average) for image in part), 6) for part in parts)


def earlier_attacks(run: Path, model: PlannedModel, data: PlannedData) -> list[AttackDir]:
    """Return the merged attacks of a run on the same weights and images, by name."""
    attacks = [AttackDir(path.parent) for path in sorted(RunDir(run).attacks.glob("*/records.parquet"))]
    same = []
    for attack in attacks:
        try:
            plan = read_plan(attack)
        except InputError:  # another version's
            continue
        if (plan.model.weights_sha256, plan.data.fingerprint) == (model.weights_sha256, data.fingerprint):
            same.append(attack)
    return same


def image_seconds(attack: AttackDir) -> pl.DataFrame | None:
    """Return (image, seconds): each stage's time, shared by the images that it attacked in a chunk."""
    plan = read_plan(attack)
    broke = [f"{stage.name}_broke" for stage in plan.stages]
    try:
        table = read_table(attack.records, ["image", "chunk", "chunk_stage_seconds", *broke])
    except DamagedError:  # or of another version: there is nothing to learn from it
        return None
    shares = [
        pl.when(pl.col(name).is_not_null())
        .then(pl.col("chunk_stage_seconds").list.get(number) / pl.col(name).count().over("chunk"))
        .otherwise(0.0)
        for number, name in enumerate(broke)
    ]
    return table.select("image", seconds=pl.sum_horizontal(shares))
