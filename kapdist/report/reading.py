"""Run directories -> values. Everything that the report says is read here, from files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars

from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.records import sealed
from kapdist.records.attack_plan import shape_in
from kapdist.records.attacked import planned_anew
from kapdist.records.metrics import Metrics, read_metrics
from kapdist.records.sanity import Acted, believed_of, read_sanity
from kapdist.records.summary import Summary, read_summary
from kapdist.run.paths import AttackDir, RunDir, as_ended, labels, weights_sha256


class Images(NamedTuple):
    """The images of an attack, to the pixel."""

    fingerprint: object
    """Of their data."""
    ids: frozenset[int]
    """In it."""
    shape: tuple[object, ...]
    """How they come to the model's size."""


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
        return optional_json(self.dir.plan) or {}

    @cached_property
    def images(self) -> Images | None:
        """What tells which images were attacked; None where records.parquet is missing."""
        if self.records is None:
            return None
        data = self.plan.get("data")
        known = data if isinstance(data, dict) else {}
        return Images(known.get("fingerprint"), frozenset(self.records["image"]), shape_in(known))

    @cached_property
    def acted(self) -> Acted | None:
        """What stronger attacks left of it; None where nothing called for any."""
        return read_sanity(self.dir.sanity).acted if self.dir.sanity.exists() else None

    @property
    def doubt(self) -> Acted | None:
        """The same where it says that this attack's number is not to be believed."""
        return self.acted if believed_of(self.acted, self.summary.plan_fingerprint) is False else None

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
    planned_anew: tuple[str, ...] = ()
    """Attacks whose summary is of an earlier plan than the one beside it: their numbers are nobody's question."""

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
    others_asked = any([*run.corruptions.glob("*/summary.json"), *run.certificates.glob("*/summary.json")])
    outside = (merged or examined or others_asked) and not run.config.exists()
    config = None if outside else run.load_config()
    attacks = tuple(Attack(AttackDir(path), read_summary(path / "summary.json")) for path in merged)
    anew = [each.name for each in attacks if planned_anew(each.dir, each.summary.plan_fingerprint)]
    found = Run(
        dir=run,
        label=label,
        config=config,
        plan=optional_json(as_ended(run.plan)),
        environment=optional_json(as_ended(run.environment)),
        metrics=read_metrics(as_ended(run.metrics)),
        attacks=tuple(each for each in attacks if each.name not in anew),
        unmerged=tuple(unmerged),
        planned_anew=tuple(anew),
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


def optional_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None where there is no file."""
    return sealed.read_json(path) if path.exists() else None


def read_rows(path: Path) -> polars.DataFrame:
    """Read records or a chunk; damage is said with what mends it."""
    rows = sealed.read_table(path, remedy="kapdist attack shard, then merge")
    if missing := {"image", "label", "clean_prediction", "broken_by"} - set(rows.columns):
        raise InputError(path, f"the column {min(missing)}", ", ".join(rows.columns))
    return rows
