"""The model card, README.md: front matter as the hub reads it, and in words what was measured and what was not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from kapdist.errors import InputError
from kapdist.publish.form import Form
from kapdist.publish.measured import Attacked, Clean, Measured, measured
from kapdist.records.sanity import Status
from kapdist.records.summary import Summary
from kapdist.report.claims import ONE_TRAINING
from kapdist.report.export.robustbench import SPELLED
from kapdist.report.facts import git_text, packages_text, said
from kapdist.report.render import accuracy, doubted, escaped
from kapdist.report.sanity import is_of_earlier
from kapdist.report.words import eps_in_full

CARD = "README.md"
# What the hub calls the data sets that kapdist knows by name.
DATASETS = {
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
    "imagenet": "ILSVRC/imagenet-1k",
}
TASK = {"type": "image-classification", "name": "Image classification"}
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
VERDICTS: dict[Status, str] = {
    "pass": "no check found a gradient that hides. That is no proof of robustness.",
    "warn": "no check failed, and some warn.",
    "fail": "attacks with gradients are misled on this network, so that the numbers above may be far too high.",
    "not asked": "nothing could be asked.",
}


@dataclass(frozen=True)
class Card:
    """What only the authors know."""

    license: str | None = None
    """As the hub spells it: mit, apache-2.0, cc-by-4.0, ..."""
    dataset: str | None = None
    """The training data on the hub, OWNER/NAME; default: of the data sets that kapdist knows by name."""
    repo: str | None = None
    """Where the folder will lie."""


def check_words(card: Card) -> None:
    """Raise InputError for a licence that the hub would not take."""
    if card.license is not None and not LICENSE.fullmatch(card.license):
        raise InputError(
            "--license", "a licence as the hub spells it, such as mit or apache-2.0", repr(card.license)
        )


def card_text(form: Form, card: Card, by_timm: bool) -> str:
    """Return README.md.

    Raises:
        InputError: a record of the run is damaged, or an attack is of other weights than the run has now.
    """
    found = measured(form)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kapdist.publish", package_path=""),
        autoescape=False,  # Markdown; what a table does not hold is escaped where a cell is made
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    front = front_matter(form, card, found, by_timm)
    return environment.get_template("card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000),
        form=form,
        card=card,
        found=found,
        by_timm=by_timm,
        place=card.repo or "FOLDER",
        network=in_words(form, found),
        clean=[clean_cells(clean) for clean in found.clean],
        attacked=[attacked_cells(row) for row in found.attacked],
        noises_off=any(row.setting.noise == "off" for row in found.attacked),
        noises_on=any(row.setting.noise != "off" for row in found.attacked),
        notes=list(dict.fromkeys(note for row in found.attacked for note in row.attack.summary.notes)),
        facts=[(name, escaped(value)) for name, value in facts(form, found)],
        verdicts=VERDICTS,
        eps_in_full=eps_in_full,
        one_training=ONE_TRAINING,
        is_of_earlier=is_of_earlier,
    )


def front_matter(form: Form, card: Card, found: Measured, by_timm: bool) -> dict[str, Any]:
    """Return the YAML that the hub reads; what is not known is left out."""
    averages = ["kernel-average-pooling"] if form.config.kap.pool_size > 1 else []
    tags = ["image-classification", *(["timm"] if by_timm else []), "kapdist", "adversarial-robustness", *averages]
    dataset = card.dataset or DATASETS.get(found.trained_on.partition("/")[0])
    values: dict[str, Any] = {
        "license": card.license,
        "library_name": "timm" if by_timm else "kapdist",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "datasets": [dataset] if dataset else None,
    }
    if entries := list(results(found)):
        values["model-index"] = [{"name": form.run.name, "results": entries}]
    return {key: value for key, value in values.items() if value is not None}


def results(found: Measured) -> Iterator[dict[str, Any]]:
    """Yield an entry per evaluation and per attack, as model-index has them.

    A robust accuracy that a stronger attack speaks against has no place there to say so, and is in the table alone.
    """
    for clean in found.clean:
        how = {"noise": clean.noise} | clean.protocol
        yield result(clean.source, clean.num_images, [metric("Accuracy", clean.accuracy.value, **how)])
    for row in found.attacked:
        at, summary = row.setting, row.attack.summary
        protocol = {"attack": at.version_text, "norm": at.norm, "eps": at.eps, "noise": at.noise} | row.protocol
        interval = {"low": summary.robust_accuracy.low, "high": summary.robust_accuracy.high}
        metrics = [metric("Clean accuracy", summary.clean_accuracy.value, noise=at.noise, **row.protocol)]
        if row.attack.doubt is None:
            name = f"Robust accuracy: {protocol_text(row)}"
            metrics.append(metric(name, summary.robust_accuracy.value, **protocol, **interval))
        yield result(row.source, summary.num_images, metrics)


def metric(name: str, value: float, **arguments: Any) -> dict[str, Any]:
    return {"type": "accuracy", "name": name, "value": value, "args": arguments}


def result(source: str, num_images: int, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    name, _, split = source.partition("/")
    dataset = {"type": DATASETS.get(name, name), "name": f"{source}, {num_images:,} images"}
    return {"task": dict(TASK), "dataset": dataset | ({"split": split} if split else {}), "metrics": metrics}


def protocol_text(row: Attacked) -> str:
    at = row.setting
    pixels = {key: value for key, value in row.protocol.items() if key not in vars(at.strength)}
    said = [at.version_text, at.norm, f"eps {at.eps_text}", at.protocol(row.told), *protocol_words(pixels)]
    return ", ".join(said)


def protocol_words(protocol: dict[str, Any]) -> Iterator[str]:
    """Say what of a protocol is not as the run or an attack by default has it."""
    if draws := protocol.get("draws", protocol.get("eot")):
        yield f"mean of {draws} draws"
    if "flip" in protocol:
        yield "mean with the mirror image"
    if "precision" in protocol:
        yield f"passes in {protocol['precision']}"
    if "crop" in protocol:
        cropped = f"centre crop {protocol['crop_ratio']:.4g}, {protocol['interpolation']}"
        yield f"{protocol['resolution']} px, {'whole' if protocol['crop'] == 'none' else cropped}"


def clean_cells(clean: Clean) -> list[str]:
    how = ", ".join([clean.noise, *protocol_words(clean.protocol)])
    return [escaped(clean.source), f"{clean.num_images:,}", escaped(how), accuracy(clean.accuracy)]


def attacked_cells(row: Attacked) -> list[str]:
    """Return an attack as a row of the table: what was tried on what, then the two shares."""
    summary: Summary = row.attack.summary
    robust = accuracy(summary.robust_accuracy) + doubted(row.row)
    cells = [protocol_text(row), row.source, f"{summary.num_images:,}", accuracy(summary.clean_accuracy), robust]
    return [escaped(cell) for cell in cells]


def in_words(form: Form, found: Measured) -> str:
    """Return the network in a line: architecture, average, noise."""
    model, row = form.config.model, found.as_row
    name = model.in_words() if model.factory else model.in_words().replace(model.name, SPELLED[model.name], 1)
    words = [f"{name}, {model.num_classes} classes"]
    if form.config.kap.pool_size > 1:
        words.append(f"kernel average pooling (K = {row.pool})")
    return ", ".join(words + [f"{noise} ({strength})" for noise, strength in found.noises.items()])


def facts(form: Form, found: Measured) -> Iterator[tuple[str, str]]:
    """Yield what a reader needs to know of the training."""
    config, environment = form.config, found.run.environment or {}
    yield "Training images", found.trained_on
    yield "Classes", ", ".join(form.class_names) or str(config.model.num_classes)
    yield "Resolution", f"{config.data.resolution} × {config.data.resolution} pixels"
    yield "Epochs", str(config.train.epochs)
    if config.train.input_noise_std:
        yield "Noise on training images", f"σ = {config.train.input_noise_std:g}"
    adversarial = config.adversarial
    if adversarial.mode != "off":
        size = eps_in_full(adversarial.norm, adversarial.eps) if adversarial.eps else said(None)
        yield "Adversarial training", f"{adversarial.mode}, {adversarial.norm}, eps {size}"
    weights = f"{form.weights.name}, sha256 {form.weights_sha256}"
    yield "Weights of the run", weights + (", a moving average" if config.optim.ema_decay else "")
    yield "Seed", str(config.seed)
    yield "State of the run", found.run.status
    yield "Git commit", git_text(environment.get("git"))
    yield "Packages", packages_text({"python": environment.get("python"), **(environment.get("packages") or {})})
