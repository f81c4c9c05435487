"""What is on disk of a study, image by image: (seeds, images) of every setting under every attack."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kapdist.config import AttackConfig, flatten
from kapdist.config.attack import attack_of_stage
from kapdist.errors import InputError
from kapdist.records.attack_plan import SCREEN
from kapdist.records.study import Row
from kapdist.records.summary import Summary, read_summary
from kapdist.report import reading
from kapdist.report.reading import read_rows
from kapdist.report.words import eps_text
from kapdist.run.files import mapping_in, to_json
from kapdist.run.paths import FACTORY, AttackDir
from kapdist.statistics.intervals import wilson
from kapdist.statistics.seeds import accuracy_interval
from kapdist.study.design import Design
from kapdist.study.settings import Setting, Trained
from kapdist.study.tasks import run_dir

SHOWN = 3  # runs that a note names
RECORDED = {
    "data.train": ("data", "on other images"),
    "train.batch_size": ("batch_size", "in other batches"),
    "model.factory": (FACTORY, "another network"),
}
"""Keys whose values say less than what plan.json has of them: under which name, and what another one comes to."""


@dataclass(frozen=True)
class Attacked:
    """The models of one setting under one attack, as far as they are merged; seeds in the order of the study."""

    setting: Setting
    attack: str
    seeds: tuple[int, ...]
    images: np.ndarray
    """(images,) their ids, ascending."""
    correct: np.ndarray
    """(seeds, images) of whether the class was right without an attack."""
    broken_eps: np.ndarray
    """(seeds, images) the eps at which an image fell, infinite where it withstood."""
    summaries: tuple[Summary, ...]
    files: tuple[Path, ...]
    data: str | None = None
    """Fingerprint of the data that the ids are of; None where no plan says."""
    doubted: Mapping[int, str] = field(default_factory=dict)
    """{seed: what stronger attacks left of its robust accuracy}, of those that are not to be believed."""

    def on_images_of(self, other: Attacked) -> bool:
        """Whether both were attacked on the same images; ids alone do not tell, as they are places in a file."""
        return self.data == other.data and np.array_equal(self.images, other.images)

    def right(self, eps: float) -> np.ndarray:
        """Return (seeds, images) of whether an image withstood all up to this eps; eps 0 asks for no attack."""
        return self.correct & (self.broken_eps > eps + 1e-9) if eps else self.correct

    @property
    def eps(self) -> tuple[float, ...]:
        return tuple(step.eps for step in self.summaries[0].sweep)

    def of_seeds(self, seeds: tuple[int, ...]) -> list[int]:
        return [self.seeds.index(seed) for seed in seeds]


@dataclass(frozen=True)
class Results:
    """All that a study has found so far."""

    design: Design
    found: Mapping[tuple[str, str], Attacked]
    """By setting and attack; what has no merged attack is not there."""
    notes: tuple[str, ...] = field(default=())

    def of(self, setting: Setting, attack: str) -> Attacked | None:
        return self.found.get((setting.name, attack))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The table: settings in the order of the study, eps ascending."""
        return tuple(row for found in self.found.values() for row in rows_of(found))


def read_results(design: Design) -> Results:
    """Read every merged attack of a study.

    Raises:
        InputError: a file is damaged, or not what its name says.
    """
    strange = {run.name: said for run in design.trained if (said := trained_as_another(design, run))}
    found, notes = {}, [*strange.values(), *trained_otherwise(design)]
    for name in design.attacks:
        for setting in design.settings:
            attacked, told = read_setting(design, setting, name, strange)
            notes += told
            if attacked is not None:
                found[setting.name, name] = attacked
    return Results(design, found, tuple(notes))


def trained_as_another(design: Design, run: Trained) -> str:
    """Say in what a run that is there was trained otherwise than the study says; "" where it was not.

    Nobody gives a run that is done its command again, which would be refused.
    """
    place = run_dir(design, run)
    try:
        place.check(run.config)
    except InputError as error:
        return (
            f"{run.name} was trained with another config ({str(error).removeprefix(f'{place.root}: ')}): left out"
        )
    return ""


def trained_otherwise(design: Design) -> Iterator[str]:
    """Say of runs that what one key of their configs stands for was something else when they were trained.

    A path says less than the images behind it: who writes a beton anew between two trainings compares these, too.
    """
    for key, (recorded, what) in RECORDED.items():
        firsts: dict[str, tuple[str, Any]] = {}
        others: dict[str, list[str]] = {}
        for run in design.trained:
            found, flat = run_dir(design, run).recorded().get(recorded), flatten(run.config)
            if found is not None:  # a batch that nobody wrote follows from the number of images
                first, known = firsts.setdefault(to_json([flat[key], flat["data.train"]]), (run.name, found))
                others.setdefault(first, []).extend([run.name] if found != known else [])
        for first, names in others.items():
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                yield f"{', '.join(names[:SHOWN])}{more} trained {what} than {first}, though {key} is the same"


def read_setting(
    design: Design, setting: Setting, attack: str, strange: Collection[str] = ()
) -> tuple[Attacked | None, list[str]]:
    """Return the seeds of a setting that are attacked, and what is to be said of them.

    Args:
        strange: runs that are not what the study says.
    """
    merged: list[tuple[Trained, AttackDir, Summary, pl.DataFrame]] = []
    notes = []
    for run in design.attacked(setting, attack):
        place = run_dir(design, run).attack(attack)
        if run.name in strange or not place.summary.exists():
            continue
        summary = read_summary(place.summary)
        if said := otherwise(design.attacks[attack].config, summary):
            notes.append(f"{run.name} was attacked ({attack}) {said}: left out")
            continue
        rows = read_rows(place.records).sort("image")
        if merged and not on_same_images(merged[0][1], merged[0][3], place, rows):
            notes.append(f"{run.name} was attacked ({attack}) on other images than {merged[0][0].name}: left out")
            continue
        merged.append((run, place, summary, rows))
    if not merged:
        return None, notes
    tables = [rows for *_, rows in merged]
    doubted = {
        run.seed: doubt.in_words()
        for run, place, summary, _ in merged
        if (doubt := reading.Attack(place, summary).doubt)
    }
    notes += [
        f"the robust accuracy of {run.name} under {attack} is not to be believed: {doubted[run.seed]}"
        for run, *_ in merged
        if run.seed in doubted
    ]
    return Attacked(
        setting=setting,
        attack=attack,
        seeds=tuple(run.seed for run, *_ in merged),
        images=tables[0]["image"].to_numpy(),
        correct=np.stack([(rows["clean_prediction"] == rows["label"]).to_numpy() for rows in tables]),
        broken_eps=np.stack([broken_at(rows) for rows in tables]),
        summaries=tuple(summary for _, _, summary, _ in merged),
        files=tuple(place.records for _, place, *_ in merged),
        data=data_of(merged[0][1]),
        doubted=doubted,
    ), notes


def on_same_images(first: AttackDir, rows: pl.DataFrame, other: AttackDir, others: pl.DataFrame) -> bool:
    return data_of(first) == data_of(other) and rows["image"].equals(others["image"])


def otherwise(asked: AttackConfig, found: Summary) -> str:
    """Say in what an attack that is there is not the one that is asked for; "" where it is.

    What fell at a smaller eps alone would count as withstanding a larger one.
    """
    every = asked.eps if isinstance(asked.eps, tuple) else (asked.eps,)
    sizes = [sorted({round(eps, 9) for eps in them}) for them in ((step.eps for step in found.sweep), every)]
    if found.norm != asked.norm or sizes[0] != sizes[1]:
        return f"at {found.norm} {' and '.join(eps_text(found.norm, step.eps) for step in found.sweep)}"
    if found.version != asked.version:
        return f"by version {found.version}"
    stages = {attack_of_stage(stage.name, stage.eps): None for stage in found.attacks}
    listed = [name for name in stages if name != SCREEN]
    if found.version == "custom" and set(listed) != set(asked.listed):
        return f"by {', '.join(listed)}"
    if found.noise != asked.noise:
        return f"with noise {found.noise}"
    return f"on a mean of {found.eot} draws" if asked.eot and found.eot != asked.eot else ""


def data_of(place: AttackDir) -> str | None:
    """Return the fingerprint of the data that an attack was made on; None where no plan says."""
    data = mapping_in(place.plan).get("data")
    return data.get("fingerprint") if isinstance(data, dict) else None


def broken_at(rows: pl.DataFrame) -> np.ndarray:
    if "broken_eps" not in rows.columns:
        raise InputError("records.parquet", "the column broken_eps", ", ".join(rows.columns))
    return rows["broken_eps"].fill_null(float("inf")).to_numpy()


def rows_of(found: Attacked) -> Iterator[Row]:
    for eps in (0.0, *found.eps):
        right = found.right(eps)
        num_seeds, num_images = right.shape
        if min(num_seeds, num_images) > 1:
            interval = accuracy_interval(right)
            low, high, method = max(0.0, interval.low), min(1.0, interval.high), interval.method
        else:
            alone = wilson(float(right.mean(0).sum()), num_images)
            what = "of one seed alone" if num_seeds == 1 else "of one image"
            low, high, method = alone.low, alone.high, f"Wilson over images, {what}"
        yield Row(
            arm=found.setting.arm,
            setting=found.setting.name,
            attack=found.attack,
            norm=found.summaries[0].norm,
            eps=eps,
            seeds=found.seeds,
            per_seed=tuple(right.mean(1).tolist()),
            value=float(right.mean()),
            low=low,
            high=high,
            method=method,
            num_images=num_images,
            files=tuple(map(str, found.files)),
        )
