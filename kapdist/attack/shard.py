"""The chunks of an attack as units of work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

import kapdist.attack.images as images_of
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.devices import computing
from kapdist.attack.model import load_model
from kapdist.attack.rows import chunk_table
from kapdist.attack.units import Tell, Work, do_shard
from kapdist.records.attack_plan import AttackPlan, read_plan, run_of
from kapdist.records.chunks import read_chunk
from kapdist.records.sealed import is_whole, write_array, write_table
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

    def __init__(self, attack: AttackDir, plan: AttackPlan) -> None:
        super().__init__(attack, plan, range(plan.num_chunks), plan.costs)
        self.plan = plan

    def file(self, chunk: int) -> Path:
        return self.directory.chunk(chunk)

    def score(self, chunk: int) -> tuple[int, int] | None:
        table = read_chunk(self.directory, self.plan, chunk)
        return None if table is None else (count_robust(table), len(table))

    def is_done(self, chunk: int) -> bool:
        attack = self.directory
        kept = (attack.adversarial_images(chunk), attack.clean_images(chunk)) if self.plan.keep_adversarial else ()
        return super().is_done(chunk) and all(map(is_whole, kept))

    def note(self, done: int, right: int, images: int) -> str:
        return f"{right}/{images} robust so far"

    def do(self, chunks: Sequence[int], tell: Tell) -> None:
        robust = seen = 0
        with computing(self.plan) as device:
            model, surrogate = models(self.plan, run_of(self.directory), device)
            batches = zip(chunks, images_of.read_chunks(self.plan, chunks), strict=True)
            for done, (chunk, (images, labels)) in enumerate(batches, start=1):
                outcome = attack_chunk(model, images.to(device), labels.to(device), self.plan, chunk, surrogate)
                table = chunk_table(self.plan, chunk, labels, outcome)
                if self.plan.keep_adversarial:
                    write_images(self.directory.clean_images(chunk), images)
                    write_images(self.directory.adversarial_images(chunk), outcome.adversarial)
                write_table(table, self.file(chunk))
                robust, seen = robust + count_robust(table), seen + len(table)
                tell(done, f"{robust}/{seen} robust")


def models(plan: AttackPlan, run: Path, device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    """Return the model under attack and the one that transfers come from, if any do."""
    surrogate = plan.own_settings.surrogate
    model = load_model(plan.model, run).to(device)
    return model, load_model(surrogate, run).to(device) if surrogate else None


def count_robust(table: pl.DataFrame) -> int:
    return table.filter(pl.col("broken_by").is_null() & (pl.col("label") == pl.col("clean_prediction"))).height


def write_images(path: Path, images: Tensor) -> None:
    """Write (batch, 3, height, width) as float32, bit by bit what broke the model, so that its norm still holds."""
    write_array(path, images.cpu().numpy())
