"""The chunks of an attack as units of work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from torch import Tensor

import kapdist.attack.images as images_of
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.devices import computing
from kapdist.attack.forms import forms_of
from kapdist.attack.own.others import load_attacked, load_others
from kapdist.attack.rows import chunk_table
from kapdist.attack.units import Tell, Work, do_shard
from kapdist.records.attack_plan import AttackPlan, read_plan, run_of
from kapdist.records.chunks import read_chunk
from kapdist.records.sealed import is_whole, write_array, write_table
from kapdist.run.files import check_outputs
from kapdist.run.paths import AttackDir


def run_shard(attack_dir: Path, shard: int, num_shards: int) -> None:
    """Attack this shard's chunks that are not done yet; may be ended and started again at any time.

    Raises:
        InputError: no such shard, no plan, or something here is not what was planned with (weights, images,
            packages, device).
        RuntimeError: an attack returned an image that breaks its own rules.
    """
    attack = AttackDir(attack_dir)
    do_shard(Chunks(attack, read_plan(attack)), shard, num_shards)


class Chunks(Work[int]):
    """The chunks of an attack, by number."""

    module, name, counted = "kapdist.attack", "chunks", "chunks"
    right = pl.col("broken_by").is_null() & (pl.col("label") == pl.col("clean_prediction"))
    note = "{right}/{images} robust so far"

    def __init__(self, attack: AttackDir, plan: AttackPlan) -> None:
        super().__init__(attack, plan, {chunk: attack.chunk(chunk) for chunk in range(plan.num_chunks)})

    def read(self, chunk: int) -> pl.DataFrame | None:
        return read_chunk(self.directory, self.subject, chunk)

    def files_of(self, chunk: int) -> tuple[Path, ...]:
        """Return where a chunk's records are, and its images where they are kept."""
        attack, kept = self.directory, self.subject.keep_adversarial
        images = (attack.adversarial_images(chunk), attack.clean_images(chunk)) if kept else ()
        return attack.chunk(chunk), *images

    def is_done(self, chunk: int) -> bool:
        return super().is_done(chunk) and all(map(is_whole, self.files_of(chunk)[1:]))

    def do(self, chunks: Sequence[int], tell: Tell) -> None:
        plan, attack, robust, seen = self.subject, self.directory, 0, 0
        check_outputs(*self.files_of(chunks[0]))
        with computing(plan) as device:
            run = run_of(attack)
            model = forms_of(load_attacked(plan, run).to(device), plan, device)
            others = load_others(plan, run, device)
            batches = zip(chunks, images_of.read_chunks(plan, chunks), strict=True)
            for done, (chunk, (images, labels)) in enumerate(batches, start=1):
                outcome = attack_chunk(model, images.to(device), labels.to(device), plan, chunk, others)
                table = chunk_table(plan, chunk, labels, outcome)
                if plan.keep_adversarial:
                    write_images(attack.clean_images(chunk), images)
                    write_images(attack.adversarial_images(chunk), outcome.adversarial)
                write_table(table, attack.chunk(chunk))
                robust, seen = robust + self.num_right(table), seen + len(table)
                tell(done, f"{robust}/{seen} robust")


def write_images(path: Path, images: Tensor) -> None:
    """Write (batch, 3, height, width) as float32, bit by bit what broke the model, so that its norm still holds."""
    write_array(path, images.cpu().numpy())
