"""Run directories -> values. Everything that the report says is read here, from files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.records import sealed
from kapdist.run.paths import AttackDir, RunDir, as_ended, labels, weights_sha256

WRITTEN_BY = {
    "summary.json": "merge it again",
    "worst_case.json": "kapdist attack worst writes it again",
    "sanity.json": "kapdist attack sanity writes it again",
}
Share = Field(ge=0, le=1)
Count = Field(ge=0)


class Record(BaseModel):
    """A part of summary.json; keys that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyRecord = TypeVar("AnyRecord", bound=Record)


class Accuracy(Record):
    """A share of images in [0, 1] with its 95% interval."""

    value: float = Share
    low: float = Share
    high: float = Share


class Stage(Record):
    """One attack of the list: what it was given and what it left."""

    name: str
    num_attacked: int = Count
    num_broken: int = Count
    num_robust_after: int = Count
    robust_accuracy_after: float = Share
    forwards: int = Count
    backwards: int = Count
    seconds: float = Count


class RescoredImages(Record):
    """A noisy model on given images, under fresh draws."""

    single_draw: Accuracy
    majority: Accuracy
    worst: Accuracy


class Rescored(Record):
    """Clean and adversarial images under as many fresh draws."""

    num_draws: int = Field(ge=1)
    clean: RescoredImages
    adversarial: RescoredImages


class Summary(Record):
    """summary.json of one attack, as attack/ writes it."""

    format: Literal[1]
    name: str
    plan_fingerprint: str
    norm: str
    eps: float = Field(gt=0)
    version: str
    noise: str
    num_images: int = Field(ge=1)
    num_clean_correct: int = Count
    clean_accuracy: Accuracy
    num_robust: int = Count
    robust_accuracy: Accuracy
    attacks: tuple[Stage, ...]
    forwards: int = Count
    backwards: int = Count
    library_forwards: int | None = None
    library_backwards: int | None = None
    rescored: Rescored | None = None
    seconds: float = Count
    max_norm: float | None = None
    device: str | None = None
    packages: dict[str, str | None] = {}
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None

    @model_validator(mode="after")
    def accuracies_are_the_counts(self) -> Summary:
        counts = (self.num_clean_correct, self.num_robust)
        for count, accuracy in zip(counts, (self.clean_accuracy, self.robust_accuracy), strict=True):
            if abs(accuracy.value - count / self.num_images) > 1e-6:
                raise ValueError(f"an accuracy equal to {count} of {self.num_images} images")
        if self.num_robust > self.num_clean_correct:
            raise ValueError(f"at most {self.num_clean_correct} robust images, as many as are correct")
        return self


@dataclass(frozen=True)
class Attack:
    """An attack that has been merged."""

    dir: AttackDir
    summary: Summary

    @property
    def name(self) -> str:
        return self.dir.root.name

    @cached_property
    def records(self) -> polars.DataFrame | None:
        """One row per image, None where the file is missing."""
        return read_rows(self.dir.records) if self.dir.records.exists() else None

    @cached_property
    def plan(self) -> dict[str, Any]:
        return read_json(self.dir.plan) or {}

    @cached_property
    def images(self) -> tuple[object, frozenset[int]] | None:
        """What tells which images were attacked: the data's fingerprint and the images' ids in it."""
        if self.records is None:
            return None
        data = self.plan.get("data")
        return data.get("fingerprint") if isinstance(data, dict) else None, frozenset(self.records["image"])

    @property
    def factory(self) -> str | None:
        """The function that made the attacked model, None for the run's own model."""
        found = self.model.get("factory")
        return found if isinstance(found, str) else None

    @property
    def model(self) -> dict[str, Any]:
        """The attacked model as planned."""
        model = self.plan.get("model")
        return model if isinstance(model, dict) else {}

    @property
    def is_of_the_run(self) -> bool:
        """Whether the weights were the run's own model.safetensors, no others that the attack named."""
        return self.factory is None and self.model.get("weights") is None


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl after the earlier lines that a resumed run went over again are gone."""

    train: tuple[dict[str, Any], ...] = ()
    evaluate: tuple[dict[str, Any], ...] = ()
    end: dict[str, Any] | None = None
    num_unreadable: int = 0

    @property
    def shown(self) -> tuple[dict[str, Any], ...]:
        """The evaluations of the weights that are exported: the moving average's where there is one."""
        kinds = {line.get("weights", "model") for line in self.evaluate}
        wanted = "ema" if "ema" in kinds else "model"
        return tuple(line for line in self.evaluate if line.get("weights", "model") == wanted)


@dataclass(frozen=True)
class Run:
    """A run directory as the report sees it; `label` tells it from the other runs of the comparison."""

    dir: RunDir
    label: str
    config: Config | None
    plan: dict[str, Any] | None
    environment: dict[str, Any] | None
    metrics: Metrics
    attacks: tuple[Attack, ...]
    unmerged: tuple[str, ...]

    @cached_property
    def weights_sha256(self) -> str | None:
        return weights_sha256(self.dir.weights) if self.dir.weights.exists() else None

    @property
    def status(self) -> str:
        if self.config is None:
            return "no training run of kapdist"
        if self.dir.failed.exists():
            return "failed"
        return "finished" if self.dir.done.exists() else "not finished"


def read_runs(paths: Sequence[Path]) -> tuple[Run, ...]:
    """Read run directories, each once, in the order given.

    Raises:
        InputError: no directory at all, one that is no run, or a file in it that is not what its name says.
    """
    roots = tuple({Path(path).resolve(): Path(path) for path in paths}.values())
    if not roots:
        raise InputError("runs", "at least one run directory", "none")
    return tuple(read_run(root, label) for root, label in zip(roots, labels(roots), strict=True))


def read_run(root: Path, label: str) -> Run:
    run = RunDir(root)
    merged = sorted(path.parent for path in run.attacks.glob("*/summary.json"))
    examined = {path.parent for path in run.attacks.glob("*/sanity.json")}
    planned = {path.parent for path in run.attacks.glob("*/plan.json")}
    others = sorted(path.name for path in run.attacks.glob("*") if path.is_dir())
    # A sanity report has a directory of its own where nothing was attacked under its name.
    unmerged = [name for name in others if run.attacks / name not in {*merged, *(examined - planned)}]
    # A model from outside has attacks and no config; anything with neither is not ours.
    corrupted = any(run.corruptions.glob("*/summary.json"))
    outside = (merged or examined or corrupted) and not run.config.exists()
    config = None if outside else run.load_config()
    found = Run(
        dir=run,
        label=label,
        config=config,
        plan=read_json(as_ended(run.plan)),
        environment=read_json(as_ended(run.environment)),
        metrics=read_metrics(as_ended(run.metrics)),
        attacks=tuple(Attack(AttackDir(path), read_summary(path / "summary.json")) for path in merged),
        unmerged=tuple(unmerged),
    )
    for attack in found.attacks:
        check_weights(found, attack)
    return found


def check_weights(run: Run, attack: Attack) -> None:
    """Raise InputError if the run has other weights by now than those that were attacked; gone is not other."""
    attacked = attack.summary.weights_sha256
    if attack.is_of_the_run and attacked and run.weights_sha256 not in (None, attacked):
        expected = f"the weights that attack {attack.name} was made on (sha256 {attacked[:12]})"
        hint = "attack again, and move the old one out of attacks/"
        raise InputError(run.dir.weights, expected, f"sha256 {str(run.weights_sha256)[:12]} ({hint})")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None where there is no file."""
    return sealed.read_json(path, WRITTEN_BY.get(path.name, "")) if path.exists() else None


def read_record(kind: type[AnyRecord], path: Path) -> AnyRecord:
    """Read a JSON file as a record of some kind.

    Raises:
        InputError: it is none; names the first field that does not fit.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}", first["msg"], "something else") from None


def read_summary(path: Path) -> Summary:
    try:
        return Summary.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        found = repr(first["input"]) if key and first["type"] != "missing" else "something else"
        raise InputError(f"{path}: {key}" if key else path, expected, found) from None


def read_rows(path: Path) -> polars.DataFrame:
    """Read records or a chunk; damage is said with what mends it."""
    rows = sealed.read_table(path, remedy="kapdist attack shard, then merge")
    if missing := {"image", "label", "clean_prediction", "broken_by"} - set(rows.columns):
        raise InputError(path, f"the column {min(missing)}", ", ".join(rows.columns))
    return rows


NEEDED = {"train": ("step", "epoch", "loss"), "evaluate": ("step", "epoch", "top1", "num_images"), "end": ("step",)}


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a killed process leaves half a line, which is counted and not read."""
    text = path.read_text(errors="replace") if path.exists() else ""
    streams: dict[tuple[str, str], list[dict[str, Any]]] = {}
    num_unreadable = 0
    for line in filter(str.strip, text.splitlines()):
        entry = parse_line(line)
        if entry is None:
            num_unreadable += 1
        elif entry["kind"] in NEEDED:
            append(streams.setdefault((entry["kind"], str(entry.get("weights", ""))), []), entry)
    return Metrics(
        train=tuple(of_kind(streams, "train")),
        evaluate=tuple(of_kind(streams, "evaluate")),
        end=next(reversed(of_kind(streams, "end")), None),
        num_unreadable=num_unreadable,
    )


def parse_line(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return None
    needed = NEEDED.get(entry["kind"], ())
    return entry if all(isinstance(entry.get(key), (int, float)) for key in needed) else None


def append(stream: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Add a line; one that goes back in steps comes from a resume and takes the place of what it repeats."""
    while stream and stream[-1]["step"] >= entry["step"]:
        stream.pop()
    stream.append(entry)


def of_kind(streams: dict[tuple[str, str], list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    found: Iterable[dict[str, Any]] = (entry for key, lines in streams.items() if key[0] == kind for entry in lines)
    return sorted(found, key=lambda entry: entry["step"])
