"""`kapdist evaluate`: a run or another model on a beton, exactly, on any number of ranks; it writes one file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.attack.averaged import log_mean
from kapdist.config import EngineConfig, flatten
from kapdist.config.evaluation import MAY_DIFFER, OF_A_FACTORY, OF_A_HOST, EvaluationConfig
from kapdist.engine import join
from kapdist.errors import InputError
from kapdist.records.evaluation import ClassCount, EvaluatedImages, EvaluationInputs, EvaluationResult
from kapdist.records.record import read_record
from kapdist.records.sealed import DamagedError, write_json
from kapdist.rng import derive_seed
from kapdist.run.files import check_outputs, output
from kapdist.run.paths import RunDir
from kapdist.tracking.sender import tell
from kapdist.train.alike import check_alike, check_told
from kapdist.train.evaluate import TOP, Evaluation, evaluate
from kapdist.train.evaluated import Evaluated, of_factory, of_run


def evaluate_run(path: Path, config: EvaluationConfig) -> EvaluationResult | None:
    """Evaluate a run, or with model.factory any other model, on every rank; write RUN/evaluations/<name>.json.

    Returns: the result on rank 0, None on the others.

    Raises:
        InputError: no finished run, a beton of other classes, a network that takes no images of that size, weights
            that give no finite logits, a result of that name of other settings, or ranks that were told different
            things or find different images or weights.
    """
    run = RunDir(path)
    engine = EngineConfig(device=config.device, threads=config.threads, timeout_minutes=config.timeout_minutes)
    with join(engine) as ranks:
        check_told(config, ranks, OF_A_HOST)
        factory = config.model.factory
        known = None if factory is not None else ranks.together(lambda: run.load_config())
        ranks.from_first(lambda: check_outputs(run.evaluation(config.name)))
        what = ranks.together(lambda: of_run(run, known, config) if known else of_factory(run, config))
        check_alike(lambda: {"images": what.info.fingerprint, "weights": what.weights().sha256}, ranks)
        inputs = ranks.from_first(lambda: inputs_of(run, what, config))
        model = ranks.together(lambda: what.load(ranks.device))
        loader = ranks.together(lambda: what.loader(config, ranks))
        found = evaluate(
            model,
            loader,
            what.info.num_images,
            what.num_classes,
            config.batch_size,
            ranks,
            stopped=lambda: False,
            predict=Averaged(model, config),
        )
        assert found is not None
        result = result_of(found, what, inputs)
        ranks.from_first(lambda: keep(run, config, result))
    if not ranks.first:
        return None
    tell([path])
    return result


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


def inputs_of(run: RunDir, what: Evaluated, config: EvaluationConfig) -> EvaluationInputs:
    """Return what the result rests on; refuse to put it in the place of another one."""
    info, settings = what.info, what.settings
    unsaid = MAY_DIFFER if config.model.factory is not None else {*MAY_DIFFER, *OF_A_FACTORY}
    inputs = EvaluationInputs(
        name=config.name,
        settings={key: value for key, value in flatten(config).items() if key not in unsaid},
        resolution=settings.resolution,
        crop_ratio=None if settings.crop == "none" else settings.crop_ratio,
        interpolation=settings.interpolation,
        data=EvaluatedImages(path=str(info.path), fingerprint=info.fingerprint, num_images=info.num_images),
        weights=what.weights(),
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


def result_of(found: Evaluation, what: Evaluated, inputs: EvaluationInputs) -> EvaluationResult:
    per_class = zip(what.class_names, found.class_images, found.class_top1, strict=False)
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
        place = run.root / result.weights.file
        raise InputError(place, "weights that give finite logits", f"a loss of {result.loss_sum}")
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
