"""What was measured on exactly the weights that are published: nothing else belongs on their card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapdist.publish.form import Form
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.record import read_record
from kapdist.records.sanity import Sanity, read_sanity
from kapdist.report.export.dataset import source_at
from kapdist.report.reading import Attack, Run, read_run
from kapdist.report.strength import NOTHING_TOLD
from kapdist.report.table import Row, Setting, setting, share_of, told
from kapdist.statistics.intervals import Proportion, wilson


@dataclass(frozen=True)
class Clean:
    """An evaluation."""

    source: str
    """What the images were written from, else the name of their beton."""
    num_images: int
    noise: str
    accuracy: Proportion


@dataclass(frozen=True)
class Attacked:
    """A merged attack."""

    row: Row
    attack: Attack
    source: str
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
    """Attacks of the run that were made on other weights."""
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
    """Read what a run has on the published weights.

    Raises:
        InputError: a record is damaged, or an attack is of other weights than the run has now.
    """
    run = read_run(form.run.root, form.run.name)
    mine = [attack for attack in run.attacks if attack.summary.weights_sha256 == form.weights_sha256]
    settings = [setting(attack) for attack in mine]
    examined = map(read_sanity, sorted(run.dir.attacks.glob("*/sanity.json")))
    return Measured(
        run=run,
        clean=tuple(evaluations(form, run)),
        attacked=tuple(
            Attacked(Row(run.label, run, it), it, source(**images_of(it)), told(where, settings))
            for it, where in zip(mine, settings, strict=True)
        ),
        sanity=tuple(report for report in examined if report.weights_sha256 == form.weights_sha256),
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
        if found.weights.sha256 == form.weights_sha256:
            images = source(Path(found.data.path), found.data.fingerprint)
            share = wilson(found.num_top1, found.num_images)
            yield Clean(images, found.num_images, str(found.settings["noise"]), share)


def images_of(attack: Attack) -> dict[str, Any]:
    data = attack.plan.get("data", {})
    return {"beton": Path(data.get("path", "images")), "fingerprint": data.get("fingerprint")}


def recorded(run: Run, name: str) -> str | None:
    found = (run.plan or {}).get(name)
    return found if isinstance(found, str) else None


def source(beton: Path, fingerprint: str | None) -> str:
    return source_at(beton, fingerprint) or beton.name
