"""`kapdist evaluate`: a trained run on a beton, exactly, on any number of ranks; it writes one file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.attack.averaged import log_mean
from kapdist.attack.model import check_network
from kapdist.config import Config, DataConfig, EngineConfig, flatten
from kapdist.config.evaluation import MAY_DIFFER, EvaluationConfig
from kapdist.config.images import SHAPE
from kapdist.config.noises import NOISE_KEYS, noises
from kapdist.data.beton.classes import classes_of, with_classes
from kapdist.data.beton.layout import BetonInfo, check_labels, open_beton
from kapdist.data.load.loader import Loader
from kapdist.engine import Ranks, join
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.records.evaluation import (
    ClassCount,
    EvaluatedImages,
    EvaluatedWeights,
    EvaluationInputs,
    EvaluationResult,
)
from kapdist.records.record import read_record
from kapdist.records.sealed import DamagedError, write_json
from kapdist.rng import derive_seed
from kapdist.run.files import check_outputs, output
from kapdist.run.paths import RunDir, weights_sha256
from kapdist.train.evaluate import TOP, Evaluation, evaluate
from kapdist.train.trainable import as_before, logits_of


def evaluate_run(path: Path, config: EvaluationConfig) -> EvaluationResult | None:
    """Evaluate a run on every rank of the job and write RUN/evaluations/<name>.json.

    Returns: the result on rank 0, None on the others.

    Raises:
        InputError: no finished run, a beton of other classes, a network that takes no images of that size, weights
            that give no finite logits, or a result of that name of other settings.
    """
    run = RunDir(path)
    engine = EngineConfig(device=config.device, threads=config.threads, timeout_minutes=config.timeout_minutes)
    with join(engine) as ranks:
        known = ranks.together(lambda: run.load_config())
        ranks.from_first(lambda: check_outputs(run.evaluation(config.name)))
        info, settings = ranks.together(lambda: open_images(run, known, config))
        inputs = ranks.from_first(lambda: inputs_of(run, info, settings, config))
        model = ranks.together(lambda: load_model(run, known, config, ranks.device))
        ranks.together(lambda: check_size(model, known, settings))
        loader = ranks.together(lambda: make_loader(known, settings, info, config, ranks))
        found = evaluate(
            model,
            loader,
            info.num_images,
            known.model.num_classes,
            config.batch_size,
            ranks,
            stopped=lambda: False,
            predict=Averaged(model, config),
        )
        assert found is not None
        result = result_of(found, info, inputs)
        ranks.from_first(lambda: keep(run, config, result))
    return result if ranks.first else None


@dataclass(frozen=True)
class Averaged:
    """Logits as a config asks for them: the mean over views; of it the log of the mean probability over draws."""

    model: nn.Module
    config: EvaluationConfig

    def __call__(self, images: Tensor, number: int) -> Tensor:
        draws = [self.draw(images, number, draw) for draw in range(self.config.draws)]
        if len(draws) == 1:
            return draws[0]
        return log_mean(torch.stack([logits.double().log_softmax(1) for logits in draws]))

    def draw(self, images: Tensor, number: int, draw: int) -> Tensor:
        """Return the logits under one draw of the noise, which belongs to (seed, batch, draw)."""
        seed = derive_seed(self.config.seed, "evaluation noise", number, draw)
        with kap.noise(self.model, self.config.noise, seed):
            logits: Tensor = self.model(images)
            return (logits + self.model(images.flip(3))) / 2 if self.config.flip else logits


def open_images(run: RunDir, known: Config, config: EvaluationConfig) -> tuple[BetonInfo, DataConfig]:
    """Open the beton, its labels as the run's classes; return it and how its images are to be read."""
    wanted = config.data
    info = open_beton(wanted.beton or known.data.validation)
    classes = classes_of(run, known)
    if classes is not None:
        info = with_classes(info, classes, wanted.classes or known.data.classes)
    elif wanted.beton is not None and len(info.class_names) != known.model.num_classes:
        raise InputError(info.path, f"{known.model.num_classes} classes (the run's)", f"{len(info.class_names)}")
    check_labels(info, known.model.num_classes)
    return info, known.data.model_copy(update=wanted.over(known.data.model_dump(include=SHAPE)))


def weights_path(run: RunDir, config: EvaluationConfig) -> Path:
    path = run.weights if config.weights == "final" else run.best_weights
    if not path.is_file():
        raise InputError(path, f"the {config.weights} weights of a run that has got so far", "no file")
    return path


def load_model(run: RunDir, known: Config, config: EvaluationConfig, device: torch.device) -> nn.Module:
    path = weights_path(run, config)
    if config.noise == "fresh" and not noises(known.model, known.kap):
        raise InputError("noise=fresh", f"a run with noise ({NOISE_KEYS})", "one without")
    check_network(run, known.model.factory)
    model = build_model(known.model, known.kap)
    load_weights(model, path)
    if known.engine.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model.eval().requires_grad_(False).to(device)


def check_size(model: nn.Module, known: Config, settings: DataConfig) -> None:
    """Raise InputError for a network that takes no images of another size than it was trained on."""
    if settings.resolution != known.data.resolution:
        place = f"data.resolution={settings.resolution}"
        with torch.no_grad(), as_before(model):
            logits_of(model, 2, settings.resolution, known.model.num_classes, place)


def make_loader(
    known: Config, settings: DataConfig, info: BetonInfo, config: EvaluationConfig, ranks: Ranks
) -> Loader:
    return Loader(
        info,
        settings,
        training=False,
        seed=known.seed,
        max_batch_size=config.batch_size,
        device=ranks.device,
        num_workers=config.workers or ranks.cpus,
        channels_last=known.engine.channels_last,
    )


def inputs_of(run: RunDir, info: BetonInfo, settings: DataConfig, config: EvaluationConfig) -> EvaluationInputs:
    """Return what the result rests on; refuse to put it in the place of another one."""
    weights = weights_path(run, config)
    inputs = EvaluationInputs(
        name=config.name,
        settings={key: value for key, value in flatten(config).items() if key not in MAY_DIFFER},
        resolution=settings.resolution,
        crop_ratio=None if settings.crop == "none" else settings.crop_ratio,
        interpolation=settings.interpolation,
        data=EvaluatedImages(path=str(info.path), fingerprint=info.fingerprint, num_images=info.num_images),
        weights=EvaluatedWeights(file=weights.name, sha256=weights_sha256(weights)),
    )
    path = run.evaluation(config.name)
    if path.exists():
        refuse_another(path, inputs)
    return inputs


def refuse_another(path: Path, inputs: EvaluationInputs) -> None:
    try:
        same = read_record(EvaluationInputs, path).same_as(inputs)
    except DamagedError:
        return  # no result at all: it is written again
    except InputError:
        same = False
    if not same:
        raise InputError(path, "a result of the same settings, weights and images (or another name=)", "another")


def result_of(found: Evaluation, info: BetonInfo, inputs: EvaluationInputs) -> EvaluationResult:
    per_class = zip(info.class_names, found.class_images, found.class_top1, strict=False)
    return EvaluationResult(
        **dict(inputs),
        **found.describe(),
        num_top1=found.num_top1,
        num_top5=found.num_top5,
        loss_sum=found.loss_sum,
        num_classes=len(found.class_images),
        classes=tuple(ClassCount(name=name, num_images=num, num_top1=top1) for name, num, top1 in per_class),
        bins=found.bins,
    )


def keep(run: RunDir, config: EvaluationConfig, result: EvaluationResult) -> None:
    if not math.isfinite(result.loss_sum):
        raise InputError(
            weights_path(run, config), "weights that give finite logits", f"a loss of {result.loss_sum}"
        )
    with output(run.evaluations):
        write_json(run.evaluation(config.name), result.describe())


def table(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Yield the lines that a reader sees."""
    crop = f", centre crop {result.crop_ratio:.4g}, {result.interpolation}" if result.crop_ratio else ""
    settings = result.settings
    yield "images", f"{result.num_images:,} of {result.data.path}"
    yield "weights", f"{result.weights.file} ({result.weights.sha256[:12]})"
    yield "resolution", f"{result.resolution} px{crop}{', and mirrored' if settings['flip'] else ''}"
    yield "noise", settings["noise"] + (f", {settings['draws']} draws" if settings["draws"] > 1 else "")
    yield "top-1", f"{100 * result.top1:.2f}% ({result.num_top1:,})"
    yield f"top-{min(TOP, result.num_classes)}", f"{100 * result.top5:.2f}% ({result.num_top5:,})"
    yield "loss", f"{result.loss:.4f}"
    yield "expected calibration error", f"{100 * result.ece:.2f}%"
    there = [one for one in result.classes if one.num_images]
    if len(there) > 1:
        worst = min(there, key=lambda one: one.num_top1 / one.num_images)
        yield "worst class", f"{worst.name}: {worst.num_top1:,} of {worst.num_images:,}"
