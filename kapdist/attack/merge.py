"""From the chunks of an attack to its records and its summary; gaps, duplicates and foreign chunks are refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from kapdist.errors import InputError, first_line
from kapdist.records.attack_plan import AttackPlan, read_plan, run_of
from kapdist.records.attacked import check_weights
from kapdist.records.sealed import (
    DamagedError,
    is_sealed,
    is_whole,
    read_table,
    write_json,
    write_table,
)
from kapdist.records.summary import Summary, summarise
from kapdist.records.worst import write_worst_case
from kapdist.run.files import write_atomic
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir
from kapdist.tracking.sender import tell


def merge(attack_dir: Path) -> Summary:
    """Add up the chunks of an attack; writes records.parquet, summary.json and summary.csv.

    Raises:
        InputError: a chunk is missing, duplicated, damaged or of another plan (all of a kind in one line), the
            weights are no longer those that were attacked, or somebody else is at work in the directory.
    """
    attack = AttackDir(attack_dir)
    plan = read_plan(attack)
    with locked(attack.lock):
        summary = merge_chunks(attack, plan)
    tell([run_of(attack)])
    return summary


def merge_chunks(attack: AttackDir, plan: AttackPlan) -> Summary:
    """Merge without taking the lock, for a caller that holds it."""
    check_weights(plan, run_of(attack))
    files = sorted(attack.chunks.glob("*.parquet"))
    records = read_chunk_files(files, plan, attack)
    try:
        summary = summarise(records, plan, notes_on_seals(files))
    except pl.exceptions.PolarsError as error:
        raise InputError(attack.chunks, "chunks that can be added up", first_line(error)) from None
    write_table(records, attack.records)
    write_atomic(attack.root / "summary.csv", pl.DataFrame(summary.rows()).write_csv())
    write_worst_case(run_of(attack))
    write_json(attack.summary, summary.describe())  # last: it says that all of it is done
    return summary


def read_chunk_files(files: list[Path], plan: AttackPlan, attack: AttackDir) -> pl.DataFrame:
    """Read all files at once and check them; one after the other where that fails, to say what is wrong."""
    refuse_damaged(attack, [file.name for file in files if not is_whole(file)])
    try:
        table = pl.read_parquet(files, glob=False, include_file_paths="file")
        index = table.select("plan", "chunk", "image", pl.col("file").str.split("/").list.last())
    except (Exception, pl.exceptions.PanicException) as error:  # damaged bytes, other columns, or no files at all
        check_chunks(read_index_one_by_one(files, attack), plan, attack)
        raise InputError(attack.chunks, "chunks of the same columns", first_line(error)) from None
    check_chunks(index, plan, attack)
    records = table.drop("file")
    # The images of a plan ascend, and so do its chunks.
    return records if records["image"].is_sorted() else records.sort("image")


def read_index_one_by_one(files: list[Path], attack: AttackDir) -> pl.DataFrame:
    """The slow way, which finds the file that is damaged and reads those of plans with other attacks."""
    tables, damaged = [], []
    for file in files:
        try:
            table = read_table(file).select("plan", "chunk", "image")
            tables.append(table.with_columns(file=pl.lit(file.name)))
        except (DamagedError, pl.exceptions.PolarsError):
            damaged.append(file.name)
    refuse_damaged(attack, damaged)
    schema = {"plan": pl.String, "chunk": pl.Int32, "image": pl.Int64, "file": pl.String}
    return pl.concat(tables) if tables else pl.DataFrame(schema=schema)


def refuse_damaged(attack: AttackDir, names: list[str]) -> None:
    expected = f"whole chunks (kapdist attack shard {attack.root} does damaged ones again)"
    refuse(attack, expected, "damaged", names)


def notes_on_seals(files: list[Path]) -> tuple[str, ...]:
    """Say how many chunks an older version wrote: they are not refused, as hours of work are in them."""
    bare = sum(not is_sealed(file) for file in files)
    if not bare:
        return ()
    return (f"{bare} of {len(files)} chunks were written without a checksum: damage in them would not be noticed",)


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
