"""One process: its cells, each written once and never done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import PIL
import polars as pl
import torch

import kapdist.attack.images as images_of
from kapdist.attack.model import load_model
from kapdist.attack.shard import settle
from kapdist.corruptions.cells import predict_chunk
from kapdist.corruptions.frost import FrostSource
from kapdist.errors import InputError
from kapdist.records.attack_plan import run_of
from kapdist.records.corruptions import NOT_ASKED, Cell, CorruptionPlan, read_cell, read_plan
from kapdist.records.sealed import write_table
from kapdist.run.ends import fatal_file, stacks_at_death
from kapdist.run.files import output
from kapdist.run.paths import CorruptionsDir

# Threads of Python help where an image is large enough that most of its time is spent inside of the libraries.
THREADS_FROM_SIDE = 96
Tell = Callable[[int, str], None]


def run_cells(directory: CorruptionsDir, shard: int, num_shards: int, tell: Tell = lambda done, note: None) -> None:
    """Do this shard's cells that are not done yet; may be ended and started again at any time.

    Args:
        tell: is given the images that this process has predicted so far, and what else there is to say.

    Raises:
        InputError: no plan, or something here is not what was planned with.
    """
    plan = read_plan(directory)
    todo = [cell for cell in plan.cells[shard::num_shards] if read_cell(directory, plan, cell) is None]
    if not todo:
        return
    device = settle_all(plan)
    model = load_model(plan.subject.model, run_of(directory)).to(device)
    chunks = range(plan.subject.num_chunks)
    images = images_of.read_chunks(plan.subject, [*chunks] * len(todo))  # one reader for all rounds
    threads = plan.subject.threads if plan.subject.data.resolution >= THREADS_FROM_SIDE else 1
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for cell in todo:
            started, labels, predictions = time.perf_counter(), [], []
            for chunk in chunks:
                batch, label = next(images)
                predictions.append(predict_chunk(model, batch, plan, cell, chunk, pool))
                labels.append(label)
                done += len(label)
                tell(done, cell.name)
            table = cell_table(plan, cell, torch.cat(labels), torch.cat(predictions))
            write_table(table.with_columns(seconds=time.perf_counter() - started), directory.cell(cell.name))


def settle_all(plan: CorruptionPlan) -> torch.device:
    """Make this process compute as the plan says.

    Raises:
        InputError: another package version, device or set of photographs than the plan's.
    """
    for name, version in (("opencv", cv2.__version__), ("pillow", PIL.__version__)):
        if plan.libraries[name] != version:
            raise InputError("environment", f"{name} {plan.libraries[name]} as planned", version)
    if plan.frost != NOT_ASKED and FrostSource.of(plan.frost_folder) != FrostSource(plan.frost_folder, plan.frost):
        raise InputError(
            "corruptions.frost", f"the photographs that were planned with ({plan.frost[:12]})", "others"
        )
    cv2.setNumThreads(1)  # a process or a thread per CPU is enough
    return settle(plan.subject)


def cell_table(plan: CorruptionPlan, cell: Cell, labels: torch.Tensor, predictions: torch.Tensor) -> pl.DataFrame:
    """Return a cell's rows, in the order of the plan's images."""
    return pl.DataFrame(
        {
            "image": pl.Series(plan.subject.images, dtype=pl.Int64),
            "label": pl.Series(labels.numpy(), dtype=pl.Int32),
            "prediction": pl.Series(predictions.numpy(), dtype=pl.Int32),
        }
    ).with_columns(
        kind=pl.lit(cell.kind),
        severity=pl.lit(cell.severity, pl.Int32),
        level=pl.lit(cell.level, pl.Float64),
        plan=pl.lit(plan.fingerprint),
    )


def main(words: Sequence[str]) -> int:
    """Run one shard as a child process; return the exit code: 2 for wrong input, with its one line."""
    from kapdist.attack.__main__ import end_with_parent

    end_with_parent()
    directory, shard = CorruptionsDir(Path(words[0])), int(words[1])
    try:
        with output(directory.root), stacks_at_death(fatal_file(directory.logs, shard)):
            run_cells(directory, shard, int(words[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
