"""What an attack will cost on a machine that is not at hand: chunks, shards, passes, hours."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kapdist.attack.cost import Passes, passes_per_image
from kapdist.attack.plan import AttackName, AttackPlan, Norm, Settings, read_plan
from kapdist.attack.planning import draws_of, screen_of, sweep_of
from kapdist.attack.stock import resolve
from kapdist.config import AttackConfig
from kapdist.errors import InputError
from kapdist.rundir import AttackDir, RunDir
from kapdist.sharding import chunk_sizes, deal


@dataclass(frozen=True)
class Measured:
    """What an attack that was made did cost."""

    source: str
    passes_per_second: float
    """Images forward and backward, per second and shard."""
    passes_per_image: float
    what: tuple[tuple[AttackName, ...], Settings, Norm, tuple[float, ...], int, int]
    """List of attacks and its settings, norm, all eps, draws, classes: what two attacks of one cost share."""


@dataclass(frozen=True)
class AttackForecast:
    """What an attack will ask for; hours only where a rate is known."""

    num_images: int
    num_chunks: int
    num_shards: int
    at_a_time: int
    """Shards that run together: one per GPU."""
    chunks_per_shard: tuple[int, int]
    images_per_shard: tuple[int, int]
    passes: tuple[Passes, ...]
    """Of an image that stays robust."""
    passes_per_second: float | None
    rate_source: str | None
    worst_shard_hours: float | None
    """Where no image falls."""
    worst_hours: float | None
    """The same, from the first shard's start to the last one's end."""
    measured_shard_hours: float | None
    """Where images fall as often as in the measured attack; None unless that was this very attack."""
    notes: tuple[str, ...]

    @property
    def passes_per_image(self) -> int:
        return sum(attack.total for attack in self.passes)

    def describe(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        return asdict(self) | {"passes_per_image": self.passes_per_image}


def forecast_attack(
    config: AttackConfig,
    num_images: int,
    num_classes: int,
    num_shards: int,
    at_a_time: int,
    passes_per_second: float | None,
    measured: Measured | None,
) -> AttackForecast:
    """Say what an attack will cost; a rate that is given is taken, else the measured one, else none.

    Raises:
        InputError: an attack that needs more classes than there are.
    """
    sweep, draws, screen = sweep_of(config), draws_of(config), screen_of(config)
    attacks, settings, notes = resolve(config.version, config.attacks, config.norm, sweep[-1], num_classes)
    passes = passes_per_image(attacks, settings, num_classes, screen=screen, num_eps=len(sweep), draws=draws)
    per_image = sum(attack.total for attack in passes)
    sizes = chunk_sizes(num_images, config.chunk_size)
    hands = deal(sizes, num_shards)
    chunks = [len(hand) for hand in hands]
    images = [int(sum(sizes[chunk] for chunk in hand)) for hand in hands]
    rate, source = passes_per_second, "--passes-per-second" if passes_per_second else None
    if rate is None and measured:
        rate, source = measured.passes_per_second, measured.source
    same = measured is not None and measured.what == (attacks, settings, config.norm, sweep, draws, num_classes)
    return AttackForecast(
        num_images=num_images,
        num_chunks=len(sizes),
        num_shards=num_shards,
        at_a_time=min(at_a_time, num_shards),
        chunks_per_shard=(min(chunks), max(chunks)),
        images_per_shard=(min(images), max(images)),
        passes=passes,
        passes_per_second=rate,
        rate_source=source,
        worst_shard_hours=hours(num_images * per_image, rate),
        worst_hours=hours(makespan(images, at_a_time) * per_image, rate),
        measured_shard_hours=hours(num_images * measured.passes_per_image, rate) if measured and same else None,
        notes=(*notes, *notes_on_shards(chunks)),
    )


def hours(passes: float, passes_per_second: float | None) -> float | None:
    return None if passes_per_second is None else passes / passes_per_second / 3600


def makespan(images: list[int], at_a_time: int) -> int:
    """Return the images that go one after the other on the busiest GPU; a GPU that is free takes the next shard."""
    busy = [0] * at_a_time
    for count in images:
        heapq.heapreplace(busy, busy[0] + count)
    return max(busy)


def notes_on_shards(chunks: list[int]) -> list[str]:
    idle = chunks.count(0)
    return [f"shards with nothing to do, as there are {sum(chunks)} chunks: {idle}"] if idle else []


def measure(run: Path, name: str) -> Measured | None:
    """Return what the run's attack of this name did cost, else its newest one's; None where none has a chunk."""
    named = RunDir(run).attack(name)
    others = sorted(RunDir(run).attacks.glob("*/plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for attack in (named, *(AttackDir(path.parent) for path in others)):
        files = [attack.records] if attack.records.exists() else sorted(attack.chunks.glob("*.parquet"))
        if files and attack.plan.exists():
            return add_up(attack, read_plan(attack), files)
    return None


def add_up(attack: AttackDir, plan: AttackPlan, files: list[Path]) -> Measured:
    """Add passes and seconds of the chunks that are done; every row of a chunk repeats them."""
    columns = ["chunk_forwards", "chunk_backwards"]
    try:
        records = pl.read_parquet(files, glob=False, columns=["chunk", "chunk_seconds", *columns])
    except Exception:  # whatever damaged bytes lead polars to
        raise InputError(attack.root, "chunks that can be read, to measure by", "damaged ones") from None
    chunks = records.unique("chunk")
    passes = len(records) * plan.eot + sum(int(chunks[name].list.sum().sum()) for name in columns)  # clean first
    return Measured(
        source=f"{attack.root} ({plan.device}, {chunks.height} of {plan.num_chunks} chunks)",
        passes_per_second=passes / float(chunks["chunk_seconds"].sum()),
        passes_per_image=passes / len(records),
        what=(plan.attacks, plan.settings, plan.norm, plan.sweep, plan.eot, plan.model.num_classes),
    )
