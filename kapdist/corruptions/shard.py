"""The cells of a run under corruptions as units of work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cv2
import PIL
import polars as pl
import torch

import kapdist.attack.images as images_of
from kapdist.attack.devices import computing
from kapdist.attack.model import load_model
from kapdist.attack.units import Tell, Work, do_shard
from kapdist.corruptions.cells import predict_chunk
from kapdist.corruptions.frost import FrostSource
from kapdist.corruptions.published import Chunks, open_planned
from kapdist.errors import InputError
from kapdist.records.attack_plan import run_of
from kapdist.records.corruptions import NOT_ASKED, Cell, CorruptionPlan, read_cell, read_plan
from kapdist.records.sealed import write_table
from kapdist.run.paths import CorruptionsDir

# Threads of Python help where an image is large enough that most of its time is spent inside of the libraries.
THREADS_FROM_SIDE = 96


def run_shard(root: Path, shard: int, num_shards: int) -> None:
    """Do this shard's cells that are not done yet; may be ended and started again at any time.

    Raises:
        InputError: no such shard, no plan, or something here is not what was planned with.
    """
    directory = CorruptionsDir(root)
    do_shard(Cells(directory, read_plan(directory)), shard, num_shards)


class Cells(Work[Cell]):
    """The cells of a plan; the images that are predicted count."""

    module, name, counted = "kapdist.corruptions", "cells", "images"
    right = pl.col("prediction") == pl.col("label")
    note = "{done} of {units} cells"

    def __init__(self, directory: CorruptionsDir, plan: CorruptionPlan) -> None:
        files = {cell: directory.cell(cell.name) for cell in plan.cells}
        super().__init__(directory, plan.subject, files, plan.subject.num_images)
        self.plan, self.corruptions = plan, directory

    def read(self, cell: Cell) -> pl.DataFrame | None:
        return read_cell(self.corruptions, self.plan, cell)

    def do(self, cells: Sequence[Cell], tell: Tell) -> None:
        subject = self.subject
        threads = subject.threads if subject.data.resolution >= THREADS_FROM_SIDE else 1
        check_planned(self.plan)
        published = open_planned(self.plan, [cell for cell in cells if cell.source])
        own = sum(cell.source is None for cell in cells)
        with computing(subject) as device, one_cv2_thread(), ThreadPoolExecutor(threads) as pool:
            model = load_model(subject.model, run_of(self.directory)).to(device)
            images = images_of.read_chunks(subject, [*range(subject.num_chunks)] * own)  # one reader for all rounds
            for number, cell in enumerate(cells):
                started, labels, predictions = time.perf_counter(), [], []
                theirs = Chunks(published, self.plan, cell, pool) if published and cell.source else None
                for chunk, (batch, label) in enumerate(theirs or islice(images, subject.num_chunks)):
                    predictions.append(predict_chunk(model, batch, self.plan, cell, chunk, pool))
                    labels.append(label)
                    seen, there = sum(map(len, labels)), self.plan.subject_of(cell).num_images
                    tell(self.weight * number + self.weight * seen // there, cell.name)  # every cell counts alike
                table = cell_table(self.plan, cell, torch.cat(labels), torch.cat(predictions))
                if theirs:
                    table = table.with_columns(contents=pl.lit(theirs.digest.hexdigest()))
                write_table(table.with_columns(seconds=time.perf_counter() - started), self.files[cell])


def check_planned(plan: CorruptionPlan) -> None:
    """Raise InputError unless libraries and photographs are those of the plan."""
    for name, version in (("opencv", cv2.__version__), ("pillow", PIL.__version__)):
        if plan.libraries[name] != version:
            raise InputError("environment", f"{name} {plan.libraries[name]} as planned", version)
    if plan.frost != NOT_ASKED and FrostSource.of(plan.frost_folder) != FrostSource(plan.frost_folder, plan.frost):
        raise InputError(
            "corruptions.frost", f"the photographs that were planned with ({plan.frost[:12]})", "others"
        )


@contextmanager
def one_cv2_thread() -> Iterator[None]:
    """A process or a thread per CPU is enough."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def cell_table(plan: CorruptionPlan, cell: Cell, labels: torch.Tensor, predictions: torch.Tensor) -> pl.DataFrame:
    """Return a cell's rows, in the order of its images."""
    return pl.DataFrame(
        {
            "image": pl.Series(plan.subject_of(cell).images, dtype=pl.Int64),
            "label": pl.Series(labels.numpy(), dtype=pl.Int32),
            "prediction": pl.Series(predictions.numpy(), dtype=pl.Int32),
        }
    ).with_columns(
        kind=pl.lit(cell.kind),
        severity=pl.lit(cell.severity, pl.Int32),
        level=pl.lit(cell.level, pl.Float64),
        plan=pl.lit(plan.fingerprint),
    )
