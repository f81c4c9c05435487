"""What an attack will cost on a machine that is not at hand: chunks, shards, passes, hours."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kapdist.attack.plan import Protocol, own_settings_of, protocol_of
from kapdist.attack.stock import resolve
from kapdist.config import AttackConfig
from kapdist.config.attack import is_function
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, Norm, OwnSettings, Settings, asks_no_gradient, read_plan
from kapdist.records.passes import (
    Passes,
    averaged,
    passes_outside,
    passes_per_image,
    screen_passes,
    straight_through,
)
from kapdist.records.sealed import DamagedError, read_table
from kapdist.records.sharding import chunks_of
from kapdist.run.paths import AttackDir, RunDir


@dataclass(frozen=True)
class Measured:
    """What an attack that was made did cost."""

    source: str
    passes_per_second: float
    """Images forward and backward, per second and shard."""
    passes_per_image: float
    attacks: tuple[str, ...]
    settings: Settings
    own_settings: OwnSettings
    gradient_of: str | None
    norm: Norm
    protocol: Protocol
    num_classes: int


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
    protocol = protocol_of(config)
    attacks, settings, notes = resolve(config.version, config.listed, config.norm, protocol.eps, num_classes)
    own = own_settings_of(config)
    passes = passes_of_all(config, protocol, passes_per_image(attacks, settings, num_classes, own))
    per_image = sum(attack.total for attack in passes)
    num_chunks = count_chunks(num_images, config.rows_of_a_chunk)
    chunks = [len(chunks_of(num_chunks, shard, num_shards)) for shard in range(num_shards)]
    images = images_of_shards(num_images, config.rows_of_a_chunk, num_shards)
    rate, source = passes_per_second, "--passes-per-second" if passes_per_second else None
    if rate is None and measured:
        rate, source = measured.passes_per_second, measured.source
    same = measured is not None and is_same(measured, config, attacks, settings, num_classes)
    return AttackForecast(
        num_images=num_images,
        num_chunks=num_chunks,
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
        notes=(*notes, *notes_on_functions(attacks), *notes_on_shards(chunks)),
    )


def passes_of_all(config: AttackConfig, protocol: Protocol, listed: tuple[Passes, ...]) -> tuple[Passes, ...]:
    """Return what every stage takes: screen and list at each eps (some once), draws one by one, the re-scoring."""
    clean, *attacks = listed
    if protocol.screen:
        attacks = [screen_passes(protocol.screen), *attacks]
    once = {"fmn", "fab-t"} if protocol.compact and config.precision == "fp32" else {"fmn"}
    every = [repeated(attack, 1 if attack.name in once else len(protocol.sweep)) for attack in attacks]
    in_parts = protocol.eot > 1 and protocol.eot * config.rows_of_a_chunk > config.rows_of_a_pass
    if config.gradient_of:
        every = [attack if asks_no_gradient(attack.name) else straight_through(attack) for attack in every]
    found = [averaged(attack, protocol.eot, in_parts) for attack in (clean, *every)]
    if config.noise != "fresh":
        found.append(Passes("repeat", 1, 0))  # the clean prediction, once more
    if protocol.rescore:
        found.append(Passes("re-scoring", 2 * protocol.rescore, 0))
    return tuple(found)


def repeated(attack: Passes, times: int) -> Passes:
    return Passes(attack.name, times * attack.forwards, times * attack.backwards)


def hours(passes: float, passes_per_second: float | None) -> float | None:
    return None if passes_per_second is None else passes / passes_per_second / 3600


def count_chunks(num_images: int, chunk_size: int) -> int:
    return -(-num_images // chunk_size)


def images_of_shards(num_images: int, chunk_size: int, num_shards: int) -> list[int]:
    """Return the images of each shard; the last chunk may be a short one."""
    num_chunks = count_chunks(num_images, chunk_size)
    images = [chunk_size * len(chunks_of(num_chunks, shard, num_shards)) for shard in range(num_shards)]
    images[(num_chunks - 1) % num_shards] -= num_chunks * chunk_size - num_images
    return images


def makespan(images: list[int], at_a_time: int) -> int:
    """Return the images that go one after the other on the busiest GPU; a GPU that is free takes the next shard."""
    busy = [0] * at_a_time
    for count in images:
        heapq.heapreplace(busy, busy[0] + count)
    return max(busy)


def is_same(
    measured: Measured, config: AttackConfig, attacks: tuple[str, ...], settings: Settings, num_classes: int
) -> bool:
    ours = attacks, settings, own_settings_of(config), config.gradient_of, config.norm, protocol_of(config)
    theirs = measured.attacks, measured.settings, measured.own_settings, measured.gradient_of, measured.norm
    return (*ours, num_classes) == (*theirs, measured.protocol, measured.num_classes)


def notes_on_functions(attacks: tuple[str, ...]) -> list[str]:
    users = [name for name in attacks if is_function(name)]
    return [f"what these ask of the model is not known, and not counted: {', '.join(users)}"] if users else []


def notes_on_shards(chunks: list[int]) -> list[str]:
    idle = chunks.count(0)
    return [f"shards with nothing to do, as there are {sum(chunks)} chunks: {idle}"] if idle else []


def measure(run: Path, name: str) -> Measured | None:
    """Return what the run's attack of this name did cost, else its newest one's; None where none has a chunk."""
    named = RunDir(run).attack(name)
    others = sorted(RunDir(run).attacks.glob("*/plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for attack in (named, *(AttackDir(path.parent) for path in others)):
        files = [attack.records] if attack.records.exists() else sorted(attack.chunks.glob("*.parquet"))
        if files and attack.plan.exists() and (found := add_up(attack, read_plan(attack), files)):
            return found
    return None


def add_up(attack: AttackDir, plan: AttackPlan, files: list[Path]) -> Measured | None:
    """Add passes and seconds of the plan's chunks that are done; every row of a chunk repeats them.

    Returns:
        None where all that is there is of an earlier plan.
    """
    columns = ["chunk_forwards", "chunk_backwards"]
    others = ["plan", "chunk", "broken_by", "chunk_seconds", "chunk_rescore_forwards"]
    try:
        records = pl.concat(read_table(file, [*others, *columns]) for file in files)
    except (DamagedError, pl.exceptions.PolarsError):
        raise InputError(attack.root, "chunks that can be read, to measure by", "damaged ones") from None
    records = records.filter(pl.col("plan") == plan.fingerprint)
    if records.is_empty():
        return None
    chunks = records.unique("chunk")
    attacked = sum(int(chunks[name].list.sum().sum()) for name in columns)
    outside = passes_outside(plan, len(records), len(records) - records["broken_by"].null_count())
    passes = outside + attacked + int(chunks["chunk_rescore_forwards"].sum())
    return Measured(
        source=f"{attack.root} ({plan.device}, {chunks.height} of {plan.num_chunks} chunks)",
        passes_per_second=passes / float(chunks["chunk_seconds"].sum()),
        passes_per_image=passes / len(records),
        attacks=plan.attacks,
        settings=plan.settings,
        own_settings=plan.own_settings.model_copy(update={"surrogate": None, "surrogates": {}}),
        gradient_of=plan.gradient_of,
        norm=plan.norm,
        protocol=Protocol(plan.sweep, plan.eot, plan.screen, plan.compact, plan.rescore),
        num_classes=plan.model.num_classes,
    )
