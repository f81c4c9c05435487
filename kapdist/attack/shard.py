"""One shard of an attack: each of its chunks is written once and never done again."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

import kapdist.attack.images as images_of
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.devices import device_kind
from kapdist.attack.model import load_model
from kapdist.attack.rows import chunk_table
from kapdist.environment import package_versions
from kapdist.errors import InputError
from kapdist.progress import Progress
from kapdist.records.attack_plan import PACKAGES, AttackPlan, read_plan, run_of
from kapdist.records.chunks import is_done
from kapdist.records.sealed import is_whole, write_array, write_table
from kapdist.records.sharding import chunks_of
from kapdist.run.ends import fatal_file, stacks_at_death
from kapdist.run.files import check_outputs, output
from kapdist.run.paths import AttackDir


def run_shard(attack_dir: Path, shard: int, num_shards: int) -> None:
    """Attack this shard's chunks that are not done yet; may be ended and started again at any time.

    Raises:
        InputError: no such shard, no plan, or something here is not what was planned with (weights, images,
            packages, device).
        RuntimeError: an attack returned an image that breaks its own rules.
    """
    if not 0 <= shard < num_shards:
        raise InputError("shard", f"a number from 0 to {num_shards - 1}", str(shard))
    attack = AttackDir(attack_dir)
    plan = read_plan(attack)
    mine = chunks_of(plan.num_chunks, shard, num_shards, plan.costs)
    todo = [chunk for chunk in mine if not is_done_with_images(attack, plan, chunk)]
    said = f"shard {shard} of {num_shards}: {len(mine)} chunks, {len(mine) - len(todo)} done already"
    print(said, file=sys.stderr, flush=True)
    if todo:
        with output(attack.root), stacks_at_death(fatal_file(attack.logs, shard)):
            check_outputs(*files_of(attack, plan, todo[0]))
            device = settle(plan)
            model, surrogate = models(plan, run_of(attack), device)
            work(attack, plan, model, surrogate, todo, device)


def models(plan: AttackPlan, run: Path, device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    """Return the model under attack and the one that transfers come from, if any do."""
    surrogate = plan.own_settings.surrogate
    model = load_model(plan.model, run).to(device)
    return model, load_model(surrogate, run).to(device) if surrogate else None


def settle(plan: AttackPlan) -> torch.device:
    """Make this process compute as the plan says.

    Raises:
        InputError: another package version or device than the plan's.
    """
    versions = package_versions(PACKAGES)
    for name, planned in plan.packages.items():
        if versions.get(name) != planned:
            raise InputError("environment", f"{name} {planned} as planned", str(versions.get(name)))
    device = "cpu" if plan.device == "cpu" else "cuda"
    if device_kind(device) != plan.device:
        raise InputError("device", f"{plan.device} as planned", device_kind(device))
    torch.set_num_threads(plan.threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


def work(
    attack: AttackDir,
    plan: AttackPlan,
    model: nn.Module,
    surrogate: nn.Module | None,
    chunks: list[int],
    device: torch.device,
) -> None:
    robust = seen = 0
    with Progress("chunks", len(chunks)) as progress:
        progress.show(0)
        for done, (chunk, (images, labels)) in enumerate(
            zip(chunks, images_of.read_chunks(plan, chunks), strict=True), start=1
        ):
            outcome = attack_chunk(model, images.to(device), labels.to(device), plan, chunk, surrogate)
            table = chunk_table(plan, chunk, labels, outcome)
            if plan.keep_adversarial:
                write_images(attack.clean_images(chunk), images)
                write_images(attack.adversarial_images(chunk), outcome.adversarial)
            write_table(table, attack.chunk(chunk))
            robust, seen = robust + count_robust(table), seen + len(table)
            progress.show(done, f"{robust}/{seen} robust")


def count_robust(table: pl.DataFrame) -> int:
    return table.filter(pl.col("broken_by").is_null() & (pl.col("label") == pl.col("clean_prediction"))).height


def files_of(attack: AttackDir, plan: AttackPlan, chunk: int) -> tuple[Path, ...]:
    """Return where a chunk's records are, and its images where they are kept."""
    kept = (attack.adversarial_images(chunk), attack.clean_images(chunk)) if plan.keep_adversarial else ()
    return attack.chunk(chunk), *kept


def is_done_with_images(attack: AttackDir, plan: AttackPlan, chunk: int) -> bool:
    records, *kept = files_of(attack, plan, chunk)
    return is_done(records, plan, chunk) and all(map(is_whole, kept))


def write_images(path: Path, images: Tensor) -> None:
    """Write (batch, 3, height, width) as float32, bit by bit what broke the model, so that its norm still holds."""
    write_array(path, images.cpu().numpy())
