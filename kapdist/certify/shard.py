"""The units of a certification: read me after plan.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

import kapdist.attack.images as images_of
from kapdist.attack.devices import computing
from kapdist.attack.judged import check_state_kept
from kapdist.attack.kept import Kept
from kapdist.attack.model import load_model
from kapdist.attack.units import Tell, Work, do_shard
from kapdist.certify.draws import NoisyCopies
from kapdist.kap import noise
from kapdist.records.attack_plan import run_of
from kapdist.records.certificate import CertificatePlan, CertificateUnit, read_certificate_unit, read_plan
from kapdist.records.sealed import write_table
from kapdist.rng import derive_seed
from kapdist.run.paths import CertificateDir
from kapdist.statistics.binomial import upper_bound
from kapdist.statistics.smoothing import chance_for

ROWS = pl.Schema(
    [
        ("image", pl.Int64()),
        ("label", pl.Int32()),
        ("sigma", pl.Float64()),
        ("selected", pl.Int32()),
        ("selection_count", pl.Int64()),
        ("classes", pl.List(pl.Int32)),
        ("counts", pl.List(pl.Int64)),
        ("draws", pl.Int64()),
    ]
)


def run_shard(root: Path, shard: int, num_shards: int) -> None:
    """Do this shard's units that are not done yet; may be ended and started again at any time.

    Raises:
        InputError: no such shard, no plan, or something here is not what was planned with.
    """
    directory = CertificateDir(root)
    do_shard(Units(directory, read_plan(directory)), shard, num_shards)


class Units(Work[CertificateUnit]):
    """The units of a plan."""

    module, name, counted = "kapdist.certify", "units", "units"
    right = pl.col("selected") == pl.col("label")
    note = "{done} of {units} units"

    def __init__(self, directory: CertificateDir, plan: CertificatePlan) -> None:
        super().__init__(directory, plan.subject, {unit: directory.chunk(unit.number) for unit in plan.units})
        self.plan, self.certificates = plan, directory

    def read(self, unit: CertificateUnit) -> pl.DataFrame | None:
        return read_certificate_unit(self.certificates, self.plan, unit)

    def do(self, units: Sequence[CertificateUnit], tell: Tell) -> None:
        plan, subject = self.plan, self.subject
        with computing(subject) as device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = load_model(subject.model, run_of(self.directory)).to(device)
            kept = Kept(model)
            # Noise that is fixed is one for all images and draws.
            with noise(model, subject.noise, seed=derive_seed(subject.seed, "certify")):
                copies = NoisyCopies(model, subject, device)
                batches = images_of.read_chunks(subject, [unit.chunk for unit in units])
                for done, (unit, (images, labels)) in enumerate(zip(units, batches, strict=True)):
                    table = unit_table(copies, plan, unit, images, labels, said_by(tell, done))
                    check_state_kept(kept, subject)
                    write_table(table, self.files[unit])
                    tell(done + 1, "")


def said_by(tell: Tell, done: int) -> Callable[[int], None]:
    return lambda image_id: tell(done, f"image {image_id}")


def unit_table(
    copies: NoisyCopies,
    plan: CertificatePlan,
    unit: CertificateUnit,
    images: Tensor,
    labels: Tensor,
    seen: Callable[[int], None],
) -> pl.DataFrame:
    """Return the rows of a unit, in the order of the plan's images.

    Args:
        seen: is told each image that is done.
    """
    started, rows = time.perf_counter(), []
    for image, label, image_id in zip(images, labels.tolist(), plan.subject.chunk_images(unit.chunk), strict=True):
        found = counted(copies, plan, unit, image.to(copies.device), image_id)
        rows.append({"image": image_id, "label": label, "sigma": unit.sigma} | found)
        seen(image_id)
    return pl.DataFrame(rows, schema=ROWS).with_columns(
        unit=pl.lit(unit.number, pl.Int32),
        plan=pl.lit(plan.fingerprint),
        seconds=pl.lit(time.perf_counter() - started, pl.Float64),
    )


def counted(
    copies: NoisyCopies, plan: CertificatePlan, unit: CertificateUnit, image: Tensor, image_id: int
) -> dict[str, object]:
    """Select the class, in block 0, and count the estimation draws of one image."""
    selected, selection_count = None, None
    if unit.block == 0:
        stream = copies.stream(image_id, unit.sigma, "selection", 0)
        votes = copies.counts(image, image_id, unit.sigma, plan.selection_draws, stream)
        selected, selection_count = int(votes.argmax()), int(votes.max())
    counts = estimated(copies, plan, unit, image, image_id, selected)
    classes = counts.nonzero().squeeze(1)
    return {
        "selected": selected,
        "selection_count": selection_count,
        "classes": classes.tolist(),
        "counts": counts[classes].tolist(),
        "draws": int(counts.sum()),
    }


def estimated(
    copies: NoisyCopies,
    plan: CertificatePlan,
    unit: CertificateUnit,
    image: Tensor,
    image_id: int,
    selected: int | None,
) -> Tensor:
    """Return the counts of the estimation draws: all of the block, or as many as the radius takes to be known."""
    stream = copies.stream(image_id, unit.sigma, "estimation", unit.block)
    if plan.stop_radius is None or selected is None:
        return copies.counts(image, image_id, unit.sigma, unit.draws, stream)
    needed, counts = chance_for(plan.stop_radius, unit.sigma), torch.zeros(0)
    for before, draws in itertools.pairwise((0, *plan.looks)):
        seen = copies.counts(image, image_id, unit.sigma, draws - before, stream)
        counts = counts + seen if before else seen
        count = int(counts[selected])
        if plan.lower_bound(count, draws) >= needed or upper_bound(count, draws, plan.alpha_of_a_look) < needed:
            break
    return counts
