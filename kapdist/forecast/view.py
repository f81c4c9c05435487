"""Forecasts on a screen: a few tables of names and values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from kapdist.forecast.training import Forecast
from kapdist.run.standard_output import screen

if TYPE_CHECKING:
    from kapdist.forecast.attack import AttackForecast

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Rows = Iterable[tuple[str, str]]


def show_forecast(found: Forecast) -> None:
    """Print what a training run will ask for."""
    m = found.machine
    show(f"Training on {m.nodes} nodes x {m.gpus_per_node} GPUs = {m.ranks} ranks", steps(found))
    show("Model and communication (ring), per rank and step", weights(found))
    show("Time and checkpoints", time_and_checkpoints(found))


def steps(found: Forecast) -> Rows:
    plan = found.plan
    yield "images", f"{plan.num_images:,}"
    yield "global batch", f"{plan.batch_size:,} at most; batches differ by one image at most"
    yield "images per rank and step", span(found.images_per_rank)
    if plan.accumulation_steps > 1:
        parts = f"{span(found.images_per_micro_batch)} in {plan.accumulation_steps} parts"
        yield "images per rank and forward", parts
    if plan.adversarial is not None:
        yield "passes per image and step", f"{plan.adversarial.passes_per_image:,} (adversarial training)"
        yield "updates per step", f"{plan.adversarial.replays:,}"
    yield "epochs", f"{plan.epochs:,}"
    yield "steps per epoch", f"{plan.steps_per_epoch:,}"
    yield "steps", f"{plan.total_steps:,}, the first {plan.warmup_steps:,} warm up"
    if robust := found.robust:
        times = -(-plan.total_steps // robust.every_steps)
        passes = f"{len(robust.images):,} images x {robust.passes_per_image:,} passes"
        yield "robust validation", f"{passes} (at most), {times:,} times"
    yield "peak learning rate", plan.peak_lr_in_words()
    for step, lr in found.lr:
        yield f"  after step {step:,}", f"{lr:.4g}"


def weights(found: Forecast) -> Rows:
    print_, traffic, memory = found.footprint, found.traffic, found.memory
    yield "parameters", f"{print_.num_parameters:,}"
    yield "buffers", f"{print_.num_buffers:,} values, {size(print_.buffer_bytes)}"
    yield "gradients", f"{size(print_.gradient_bytes)} in fp32"
    yield "engine", found.engine + (f", ZeRO {found.zero_stage}" if found.zero_stage else "")
    yield "received: gradients", size(traffic.gradients)
    yield "received: parameters", size(traffic.parameters)
    yield "received: buffers", size(traffic.buffers)
    yield "received in all", size(traffic.total)
    yield "held: parameters", size(memory.parameters)
    yield "held: gradients", size(memory.gradients)
    yield "held: optimizer", size(memory.optimizer)
    yield "held: moving average", size(memory.ema)
    if memory.perturbed:
        yield "held: weights' perturbation", size(memory.perturbed)


def time_and_checkpoints(found: Forecast) -> Rows:
    saved = found.checkpoints
    if found.rate is None or found.hours is None:
        yield "hours", "not known: no metrics of this run; --images-per-second-per-rank X says a rate"
    else:
        yield "images per second and rank", f"{found.rate.images_per_second:,.1f} by {found.rate.source}"
        yield "hours", f"{found.hours:,.2f} where every rank keeps that rate; evaluations come on top"
    yield (
        "checkpoint",
        f"{size(saved.total_bytes)}: {size(saved.shared_bytes)} + {size(saved.bytes_per_rank)} per rank",
    )
    yield "checkpoints on disk", f"{saved.kept}, {size(saved.kept_bytes)}"
    yield "checkpoints written", "not known without a rate" if saved.writes is None else f"{saved.writes:,}"


def show_attack(found: AttackForecast) -> None:
    """Print what an attack will ask for."""
    show(f"Attack in {found.num_shards:,} shards, {found.at_a_time:,} at a time", shards(found))
    table = Table("attack", title="Passes of one image that no attack breaks", title_justify="left", min_width=48)
    for name in ("forward", "backward"):
        table.add_column(name, justify="right")
    for attack in found.passes:
        table.add_row(attack.name, f"{attack.forwards:,}", f"{attack.backwards:,}")
    screen().print(table)
    show("Time", attack_time(found))


def shards(found: AttackForecast) -> Rows:
    yield "images", f"{found.num_images:,}"
    yield "chunks", f"{found.num_chunks:,}"
    yield "chunks per shard", span(found.chunks_per_shard)
    yield "images per shard", span(found.images_per_shard)
    for note in found.notes:
        yield "note", note


def attack_time(found: AttackForecast) -> Rows:
    yield "passes", f"{found.num_images * found.passes_per_image:,} at most"
    if found.passes_per_second is None:
        yield "hours", "not known: neither an attack made in --run RUN nor --passes-per-second X tells a rate"
        return
    yield "passes per second and shard", f"{found.passes_per_second:,.1f} by {found.rate_source}"
    yield "shard hours, worst case", f"{found.worst_shard_hours:,.2f}: no image falls"
    yield "hours, worst case", f"{found.worst_hours:,.2f} from the first start to the last end"
    if found.measured_shard_hours is not None:
        yield "shard hours, as measured", f"{found.measured_shard_hours:,.2f}: as many images fall as they did"


def show(title: str, rows: Rows) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    screen().print(table)


def span(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def size(num_bytes: int) -> str:
    """Return e.g. "97.5 MiB"."""
    value, unit = float(num_bytes), UNITS[0]
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{num_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
