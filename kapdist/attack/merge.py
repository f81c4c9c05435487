"""From the chunks of an attack to its records and its summary; gaps, duplicates and foreign chunks are refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from kapdist.attack.plan import AttackPlan, read_plan, run_of
from kapdist.attack.records import write_table
from kapdist.attack.summary import Summary, summarise
from kapdist.attack.worst import write_worst_case
from kapdist.errors import InputError
from kapdist.lock import locked
from kapdist.rundir import AttackDir, write_atomic, write_json


def merge(attack_dir: Path) -> Summary:
    """Add up the chunks of an attack; writes records.parquet, summary.json and summary.csv.

    Raises:
        InputError: a chunk is missing, duplicated, damaged or of another plan (all of a kind in one line), or
            somebody else is at work in the directory.
    """
    attack = AttackDir(attack_dir)
    plan = read_plan(attack)
    with locked(attack.lock):
        return merge_chunks(attack, plan)


def merge_chunks(attack: AttackDir, plan: AttackPlan) -> Summary:
    """Merge without taking the lock, for a caller that holds it."""
    records = read_chunk_files(sorted(attack.chunks.glob("*.parquet")), plan, attack)
    summary = summarise(records, plan)
    write_table(records, attack.records)
    write_atomic(attack.root / "summary.csv", pl.DataFrame(summary.rows()).write_csv())
    write_json(attack.summary, summary.describe())
    write_worst_case(run_of(attack))
    return summary


def read_chunk_files(files: list[Path], plan: AttackPlan, attack: AttackDir) -> pl.DataFrame:
    """Read all files at once and check them; one after the other where that fails, to say what is wrong."""
    try:
        table = pl.read_parquet(files, glob=False, include_file_paths="file")
        index = table.select("plan", "chunk", "image", pl.col("file").str.split("/").list.last())
    except Exception:  # whatever damaged bytes, the columns of another plan, or no files lead polars to
        check_chunks(read_index_one_by_one(files), plan, attack)
        raise
    check_chunks(index, plan, attack)
    records = table.drop("file")
    # The images of a plan ascend, and so do its chunks.
    return records if records["image"].is_sorted() else records.sort("image")


def read_index_one_by_one(files: list[Path]) -> pl.DataFrame:
    """The slow way, which finds the file that is damaged and reads those of plans with other attacks."""
    tables, damaged = [], []
    for file in files:
        try:
            table = pl.read_parquet(file, glob=False, columns=["plan", "chunk", "image"])
            tables.append(table.select("plan", "chunk", "image", file=pl.lit(file.name)))
        except Exception:
            damaged.append(file.name)
    if damaged:
        expected = "whole chunks (remove these and run the shards again)"
        raise InputError(files[0].parent, expected, f"damaged {listed(damaged)}")
    schema = {"plan": pl.String, "chunk": pl.Int32, "image": pl.Int64, "file": pl.String}
    return pl.concat(tables) if tables else pl.DataFrame(schema=schema)


def check_chunks(index: pl.DataFrame, plan: AttackPlan, attack: AttackDir) -> None:
    """Raise InputError unless the files hold each chunk of the plan once and nothing else."""
    planned = pl.DataFrame(
        {
            "image": pl.Series(plan.images, dtype=pl.Int64),
            "expected": [i // plan.chunk_size for i in range(len(plan.images))],
        }
    )
    foreign = index.filter(pl.col("plan") != plan.fingerprint)["file"].unique().to_list()
    refuse(attack, f"chunks of this plan ({plan.fingerprint[:12]})", "chunks of another plan in", foreign)
    files = index.unique(["chunk", "file"]).group_by("chunk").agg("file").filter(pl.col("file").list.len() > 1)
    refuse(attack, "one file per chunk", "more than one for chunk", files["chunk"].to_list())
    missing = set(range(plan.num_chunks)) - set(index["chunk"].unique().to_list())
    refuse(attack, f"all {plan.num_chunks} chunks (run the shards again)", "none of chunk", missing)
    twice = index.filter(pl.col("image").is_duplicated())["image"].unique().to_list()
    refuse(attack, "each image once", "duplicates of image", twice)
    strange = index.join(planned, on="image", how="anti")["image"].to_list()
    refuse(attack, "images of the plan", "image", strange)
    absent = planned.join(index, on="image", how="anti")["image"].to_list()
    refuse(attack, "all images of the plan", "no row of image", absent)


def refuse(attack: AttackDir, expected: str, found: str, items: Iterable[int | str]) -> None:
    names = sorted(items)
    if names:
        raise InputError(attack.root, expected, f"{found} {listed(names)}")


def listed(items: list[int] | list[str] | list[int | str]) -> str:
    """Name the first few."""
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return ", ".join(map(str, items[:8])) + more
