"""What was measured on exactly the weights that are published: nothing else belongs on their card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kapdist.publish.form import Form
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.record import read_record
from kapdist.records.sanity import Sanity, read_sanity
from kapdist.report.export.dataset import source_at
from kapdist.report.reading import Attack, Run, optional_json, read_run
from kapdist.report.strength import NOTHING_TOLD
from kapdist.report.table import Row, Setting, setting, share_of, told
from kapdist.run.paths import AttackDir
from kapdist.statistics.intervals import Proportion, wilson


@dataclass(frozen=True)
class Clean:
    """An evaluation."""

    source: str
    """What the images were written from, else the name of their beton."""
    num_images: int
    noise: str
    accuracy: Proportion
    protocol: dict[str, Any] = field(default_factory=dict)
    """What is not as the run has it: of flip, draws, resolution, crop_ratio, interpolation."""


@dataclass(frozen=True)
class Attacked:
    """A merged attack."""

    row: Row
    attack: Attack
    source: str
    protocol: dict[str, Any] = field(default_factory=dict)
    """What is not as the run has it, or as an attack has it by default: of eot, precision, resolution, crop_ratio,
    interpolation."""
    told: frozenset[str] = NOTHING_TOLD
    """Parts of the attack's strength in which others of the run differ, and in nothing else."""

    @property
    def setting(self) -> Setting:
        return setting(self.attack)


@dataclass(frozen=True)
class Measured:
    """All of it."""

    run: Run
    clean: tuple[Clean, ...]
    attacked: tuple[Attacked, ...]
    sanity: tuple[Sanity, ...]
    others: tuple[str, ...]
    """Attacks of the run that were made on other weights, or on a factory's network, whatever it loads."""
    trained_on: str
    """As `Clean.source`."""

    @property
    def noises(self) -> dict[str, str]:
        """What the run's network draws in every pass, and how strongly."""
        return self.as_row.noises

    @property
    def as_row(self) -> Row:
        return Row(self.run.label, self.run, None)


def measured(form: Form) -> Measured:
    """Read what a run has on the published network: these weights in the run's own network, not in a factory's.

    Raises:
        InputError: a record is damaged, or an attack is of other weights than the run has now.
    """
    run = read_run(form.run.root, form.run.name)
    mine = [
        attack
        for attack in run.attacks
        if attack.summary.weights_sha256 == form.weights_sha256 and attack.factory is None
    ]
    settings = [setting(attack) for attack in mine]
    return Measured(
        run=run,
        clean=tuple(evaluations(form, run)),
        attacked=tuple(
            Attacked(
                Row(run.label, run, it),
                it,
                source(**images_of(it)),
                attack_protocol(it, form),
                told(where, settings),
            )
            for it, where in zip(mine, settings, strict=True)
        ),
        sanity=tuple(examined(form)),
        others=tuple(attack.name for attack in run.attacks if attack not in mine),
        trained_on=source(form.config.data.train, recorded(run, "data")),
    )


def evaluations(form: Form, run: Run) -> Iterator[Clean]:
    """Yield the last evaluation of the training, where it was of these weights, and those that were asked for."""
    if form.weights == form.run.weights and run.metrics.shown:
        last = run.metrics.shown[-1]
        images = source(form.config.data.validation, recorded(run, "validation"))
        yield Clean(images, int(last["num_images"]), last.get("noise", "off"), share_of(last))
    for path in sorted(run.dir.evaluations.glob("*.json")):
        found = read_record(EvaluationResult, path)
        if found.weights.sha256 == form.weights_sha256 and found.settings.get("model.factory") is None:
            images = source(Path(found.data.path), found.data.fingerprint)
            share = wilson(found.num_top1, found.num_images)
            noise = str(found.settings["noise"])
            yield Clean(images, found.num_images, noise, share, evaluation_protocol(found, form))


def evaluation_protocol(found: EvaluationResult, form: Form) -> dict[str, Any]:
    draws = found.settings.get("draws") or 1
    said: dict[str, Any] = {"flip": True} if found.settings.get("flip") else {}
    said |= {"draws": draws} if draws > 1 else {}
    return said | pixels(form, found.resolution, found.crop_ratio, found.interpolation)


def attack_protocol(attack: Attack, form: Form) -> dict[str, Any]:
    said: dict[str, Any] = {"eot": attack.summary.eot} if attack.summary.eot > 1 else {}
    precision, data = attack.plan.get("precision", "fp32"), attack.plan.get("data", {})
    said |= {"precision": precision} if precision != "fp32" else {}
    if "resolution" not in data:
        return said
    ratio = None if data["crop"] == "none" else data["crop_ratio"]
    return said | pixels(form, data["resolution"], ratio, data.get("interpolation", "area"))


def pixels(form: Form, resolution: int, crop_ratio: float | None, interpolation: str) -> dict[str, Any]:
    """Return how images came to their size, where it is not how the run's own evaluation takes them.

    Args:
        crop_ratio: None: they were taken as they are, all of them.
    """
    own = form.config.data
    shape = shape_of(resolution, crop_ratio, interpolation)
    as_run = shape_of(own.resolution, None if own.crop == "none" else own.crop_ratio, own.interpolation)
    return {} if shape == as_run else shape


def shape_of(resolution: int, crop_ratio: float | None, interpolation: str) -> dict[str, Any]:
    whole = {"resolution": resolution, "crop": "none"}
    if crop_ratio is None:
        return whole
    return whole | {"crop": "center", "crop_ratio": crop_ratio, "interpolation": interpolation}


def examined(form: Form) -> Iterator[Sanity]:
    """Yield the sanity reports of the published network; of those of before the plan beside them tells."""
    for path in sorted(form.run.attacks.glob("*/sanity.json")):
        report, factory = read_sanity(path), None
        if "factory" in report.model_fields_set:
            factory = report.factory
        elif plan := optional_json(AttackDir(path.parent).plan):
            factory = (plan.get("model") or {}).get("factory")
        if report.weights_sha256 == form.weights_sha256 and factory is None:
            yield report


def images_of(attack: Attack) -> dict[str, Any]:
    data = attack.plan.get("data", {})
    return {"beton": Path(data.get("path", "images")), "fingerprint": data.get("fingerprint")}


def recorded(run: Run, name: str) -> str | None:
    found = (run.plan or {}).get(name)
    return found if isinstance(found, str) else None


def source(beton: Path, fingerprint: str | None) -> str:
    return source_at(beton, fingerprint) or beton.name
