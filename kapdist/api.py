"""What the command line does, for programs: a module or a name in, records out.

Each function makes the same plan and does the same chunks as its command, in a directory, so its numbers are the
command's. Keys of the command's config are its arguments (`eps=8/255`, `attacks=["apgd-ce"]`; sections as mappings,
`sanity={"iterations": 5}`), over those of a YAML file, `config`, where one is given.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from kapdist.attack.run import run_attack
from kapdist.certify.run import run_certify
from kapdist.config import AttackConfig
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import load_config
from kapdist.corruptions.run import run_corruptions
from kapdist.data.load.tensors import write_tensors
from kapdist.errors import InputError
from kapdist.models.live import device_of, given
from kapdist.models.shown import shown_images
from kapdist.records.attack_plan import AttackPlan, read_plan
from kapdist.records.certificate import CertificateSummary
from kapdist.records.corruptions import CorruptionSummary
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.sanity import Sanity
from kapdist.records.sealed import read_array, read_table
from kapdist.records.summary import Summary
from kapdist.run.paths import AttackDir, RunDir
from kapdist.sanity.run import run_sanity
from kapdist.train.evaluate_run import evaluate_run

Model = nn.Module | str | Path
Images = Tensor | str | Path


@dataclass(frozen=True)
class Attacked:
    """An attack that is done."""

    summary: Summary
    """Accuracies with their intervals, what each attack broke, what it cost: summary.json."""
    images: pl.DataFrame
    """One row per image, as in records.parquet: `image`, `label`, `clean_prediction`, `broken_by` and more."""
    plan: AttackPlan
    adversarial: Tensor | None
    """(number, 3, side, side), float32, in the order of `images`: what broke the model, else the clean image. None
    without keep_adversarial=True."""


@dataclass(frozen=True)
class Corrupted:
    """A model under corruptions."""

    summary: CorruptionSummary
    """Accuracies of every kind at every severity: summary.json."""
    images: pl.DataFrame
    """One row per image and corruption: `kind`, `severity`, `image`, `label`, `prediction`."""


@dataclass(frozen=True)
class Certified:
    """A smoothed model's certificates."""

    summary: CertificateSummary
    """Certified accuracy by radius, for every sigma: summary.json."""
    images: pl.DataFrame
    """One row per image and sigma: `image`, `label`, `sigma`, `predicted`, `radius` and the counts behind them."""


def attack(
    model: Model,
    images: Images | None = None,
    labels: Tensor | None = None,
    /,
    *,
    config: Path | str | None = None,
    directory: Path | str | None = None,
    **keys: Any,
) -> Attacked:
    """Attack a model, as `kapdist attack run` does; without other words with AutoAttack, Linf, eps 4/255.

    Args:
        model: a module in evaluation mode, from images in [0, 1] to logits (batch, classes); or a run's directory;
            or a factory, `timm:resnet50`, `file.py:function`, whose weights are `model={"weights": FILE}`. A module
            is attacked in this process alone, on its device; its state is hashed; afterwards it is as it was.
        images: (number, 3, side, side), floating point in [0, 1]; bytes are refused. Or a beton, whose labels are
            taken. A run has images of its own.
        labels: (number,), whole numbers, of tensors.
        directory: where plan, chunks and records stay, so that the same call goes on where another was ended; a
            temporary one by default. A run's lie in the run.

    Raises:
        InputError: as the command; a module in training mode; tensors that are no images in [0, 1].
    """
    with asked(model, images, labels, directory, keys) as (run, values):
        resolved = load_config(AttackConfig, *named(config, values, "attack"))
        summary = run_attack(run, resolved, here=resolved.num_shards == 1)
        place = RunDir(run).attack(resolved.name)
        plan = read_plan(place)
        return Attacked(summary, read_table(place.records), plan, adversarial_images(place, plan))


def adversarial_images(place: AttackDir, plan: AttackPlan) -> Tensor | None:
    if not plan.keep_adversarial:
        return None
    chunks = [read_array(place.adversarial_images(chunk)) for chunk in range(plan.num_chunks)]
    return torch.from_numpy(np.concatenate(chunks))


def evaluate(
    model: Model,
    images: Images | None = None,
    labels: Tensor | None = None,
    /,
    *,
    config: Path | str | None = None,
    directory: Path | str | None = None,
    **keys: Any,
) -> EvaluationResult:
    """Count what a model gets right, per class too, and how calibrated it is, as `kapdist evaluate` does.

    Args and errors are those of `attack`; tensors are taken as they are.
    """
    with asked(model, images, labels, directory, keys) as (run, values):
        found = evaluate_run(run, load_config(EvaluationConfig, *named(config, values, "evaluation")))
    assert found is not None, "a program is a rank alone"
    return found


def sanity(
    model: Model,
    images: Images | None = None,
    labels: Tensor | None = None,
    /,
    *,
    config: Path | str | None = None,
    directory: Path | str | None = None,
    **keys: Any,
) -> Sanity:
    """Examine whether an attack on a model can be believed, as `kapdist attack sanity` does.

    Args and errors are those of `attack`.
    """
    with asked(model, images, labels, directory, keys) as (run, values):
        return run_sanity(run, load_config(AttackConfig, *named(config, values, "sanity")))


def corruptions(
    model: Model,
    images: Images | None = None,
    labels: Tensor | None = None,
    /,
    *,
    config: Path | str | None = None,
    directory: Path | str | None = None,
    **keys: Any,
) -> Corrupted:
    """Measure a model's accuracy under corruptions and random noise, as `kapdist attack corruptions` does.

    Args and errors are those of `attack`.
    """
    with asked(model, images, labels, directory, keys) as (run, values):
        resolved = load_config(AttackConfig, *named(config, values, "corruptions"))
        summary = run_corruptions(run, resolved)
        cells = sorted(RunDir(run).corrupted(resolved.name).cells.glob("*.parquet"))
        return Corrupted(summary, pl.concat([read_table(cell) for cell in cells]))


def certify(
    model: Model,
    images: Images | None = None,
    labels: Tensor | None = None,
    /,
    *,
    config: Path | str | None = None,
    directory: Path | str | None = None,
    **keys: Any,
) -> Certified:
    """Certify a model that is smoothed by Gaussian noise on its images (`sigma`), as `kapdist certify` does.

    Args and errors are those of `attack`.
    """
    with asked(model, images, labels, directory, keys) as (run, values):
        resolved = load_config(CertifyConfig, *named(config, values, "certificate"))
        summary = run_certify(run, resolved)
        return Certified(summary, read_table(RunDir(run).certified(resolved.name).records))


def named(
    config: Path | str | None, values: Mapping[str, Any], name: str
) -> tuple[Path | None, tuple[str, ...], dict[str, Any]]:
    """Return what `load_config` is to read; without a file the config is called `name`."""
    if config is not None:
        return Path(config), (), dict(values)
    return None, (), {"name": name} | dict(values)


@contextlib.contextmanager
def asked(
    model: Model,
    images: Images | None,
    labels: Tensor | None,
    directory: Path | str | None,
    keys: Mapping[str, Any],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the directory to work in and the config's values that name this model and these images."""
    if is_run(model):
        if directory is not None:
            raise InputError("directory", "none beside a run, whose results lie in it", str(directory))
        run = Path(str(model))
        yield run, {**keys, **data_of(images, labels, run / "images")}
        return
    with contextlib.ExitStack() as stack:
        if directory is not None and Path(directory).exists() and not Path(directory).is_dir():
            raise InputError("directory", "a folder, or none yet", f"{directory}, a file")
        folder = Path(directory) if directory is not None else Path(stack.enter_context(temporary()))
        factory = stack.enter_context(given(model)) if isinstance(model, nn.Module) else str(model)
        values = {**keys, **data_of(images, labels, folder)}
        values["model"] = {**model_keys(keys), "factory": factory}
        if isinstance(model, nn.Module):
            check_alone(keys)
            values.setdefault("device", device_of(model).type)
        if isinstance(images, Tensor) and "num_classes" not in keys:
            values["num_classes"] = num_logits(model, images)
        yield folder, values


def model_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of the model beside what it is."""
    said = keys.get("model") or {}
    if not isinstance(said, Mapping):
        raise InputError("model", "a mapping beside the model itself, such as {'weights': FILE}", repr(said)[:100])
    return dict(said)


def is_run(model: Model) -> bool:
    if isinstance(model, nn.Module):
        return False
    if not isinstance(model, str | Path):
        raise InputError("model", "a module, a run directory or a factory", f"a {type(model).__name__}")
    if not RunDir(Path(model)).config.exists() and "." not in str(model) and ":" not in str(model):
        raise InputError(model, "a run directory, a module or a factory (timm:resnet50, file.py:function)", "none")
    return RunDir(Path(model)).config.exists()


def temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kapdist-")


def data_of(images: Images | None, labels: Tensor | None, folder: Path) -> dict[str, Any]:
    """Return the config's value that names the images; tensors are written to a file in the folder."""
    if isinstance(images, Tensor):
        if labels is None:
            raise InputError("labels", "a tensor with the images' labels", "none")
        return {"data": write_tensors(folder, images, labels)}
    if labels is not None and (images is None or isinstance(images, str | Path)):
        raise InputError("labels", "none beside a beton, which has them", f"a {type(labels).__name__}")
    if images is not None and not isinstance(images, str | Path):
        raise InputError("images", "a tensor, or the path of a beton", f"a {type(images).__name__}")
    return {} if images is None else {"data": Path(images)}


def check_alone(keys: Mapping[str, Any]) -> None:
    """Raise InputError for a module that is asked for in several processes: no other has it."""
    if keys.get("num_shards", 1) != 1:
        raise InputError("num_shards", "1 with a module, which this process alone has", str(keys["num_shards"]))


def num_logits(model: Model, images: Tensor) -> int:
    """Return the number of classes that a module tells apart; of a factory it has to be said."""
    if not isinstance(model, nn.Module):
        found = "none, and tensors have no list of classes"
        raise InputError("num_classes", f"the number of {model}'s logits (num_classes=1000)", found)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        shown = shown_images(model, images.shape[-1])
        logits = model(shown)
    return int(logits.shape[1]) if isinstance(logits, Tensor) and logits.dim() == 2 else 2
