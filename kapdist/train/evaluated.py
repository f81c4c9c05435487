"""What `kapdist evaluate` looks at: a run, or a network by other people, and images as it is shown them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kapdist.attack import model as attacked
from kapdist.attack.images import ImageSet, describe_tensors, shape_of
from kapdist.config import AttackConfig, Config, DataConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.images import SHAPE, ImagesConfig
from kapdist.config.noises import NOISE_KEYS, noises
from kapdist.data.beton.classes import classes_of, with_classes
from kapdist.data.beton.layout import BetonInfo, check_labels, open_beton
from kapdist.data.load.loader import Batch, Loader, read_once
from kapdist.data.load.tensors import Tensors, is_tensors
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.imported import place_of
from kapdist.models.weights import load_weights
from kapdist.models.zoo import stated
from kapdist.records.attack_plan import PlannedData, PlannedModel
from kapdist.records.evaluation import EvaluatedWeights
from kapdist.run.paths import RunDir, weights_sha256
from kapdist.train.trainable import as_before, logits_of

log = logging.getLogger(__name__)

Images = BetonInfo | Tensors


@dataclass(frozen=True)
class Evaluated:
    """A model that can be had and the images that it is shown."""

    info: Images
    settings: DataConfig
    num_classes: int
    weights: Callable[[], EvaluatedWeights]
    load: Callable[[torch.device], nn.Module]
    """Builds it, in eval mode, frozen."""
    seed: int = 0
    channels_last: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names; of tensors' labels, numbers."""
        return tuple(map(str, range(self.num_classes))) if isinstance(self.info, Tensors) else self.info.class_names

    def loader(self, config: EvaluationConfig, ranks: Ranks) -> Loader | TensorLoader:
        if isinstance(self.info, Tensors):
            return TensorLoader(self.info, ranks.device)
        return Loader(
            self.info,
            read_once(self.settings),
            training=False,
            seed=self.seed,
            max_batch_size=config.batch_size,
            device=ranks.device,
            num_workers=config.workers or ranks.decoders,
            channels_last=self.channels_last,
        )


@dataclass(frozen=True)
class TensorLoader:
    """Batches of a file of tensors."""

    file: Tensors
    device: torch.device

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        for ids, (images, labels) in zip(batches, self.file.batches(batches), strict=True):
            yield Batch(images.to(self.device), labels.to(self.device), ids)


def of_run(run: RunDir, known: Config, config: EvaluationConfig) -> Evaluated:
    """Return a run's model, and its beton or another of its classes.

    Raises:
        InputError: a beton of other classes.
    """
    info, settings = open_images(run, known, config)

    def weights() -> EvaluatedWeights:
        path = weights_path(run, config)
        return EvaluatedWeights(file=path.name, sha256=weights_sha256(path))

    return Evaluated(
        info=info,
        settings=settings,
        num_classes=known.model.num_classes,
        weights=weights,
        load=lambda device: load_model(run, known, config, settings, device),
        seed=known.seed,
        channels_last=known.engine.channels_last,
    )


def of_factory(run: RunDir, config: EvaluationConfig) -> Evaluated:
    """Return the model of a factory and a beton, or a file of tensors, which has to be named.

    Raises:
        InputError: no images are named, nothing says their size, or no such model can be had.
    """
    from kapdist.attack.plan import plan_model  # where it is used: it loads the library of attacks

    factory, path = str(config.model.factory), config.data.beton
    if path is None:
        raise InputError("data", f"a beton with the images for {factory} (data=FILE.beton)", "none")
    info: Images = Tensors(path) if is_tensors(path) else open_beton(path)
    settings = DataConfig(train=path, validation=path, **factory_shape(info, factory, config.data))
    num_classes = config.num_classes or len(info.class_names)
    planned = plan_model(run.root, as_attacked(config), None, image_set_of(info, settings))
    check_numbers(info, num_classes)
    return Evaluated(
        info=info,
        settings=settings,
        num_classes=num_classes,
        weights=lambda: EvaluatedWeights(file=factory, sha256=planned.weights_sha256),
        load=lambda device: checked(planned, run, settings.resolution).to(device),
    )


def checked(planned: PlannedModel, run: RunDir, resolution: int) -> nn.Module:
    """Build a factory's network, see that it gives logits, and say what its configuration says and nothing does.

    Raises:
        InputError: it cannot be built, or is no classifier.
    """
    from kapdist.attack.classifier import check_classifier
    from kapdist.attack.notes import notes_on_factory

    network = attacked.load_model(planned, run.root)
    place = place_of(str(planned.factory))
    check_classifier(network, place, planned.num_classes, resolution, gradients=False)
    for note in notes_on_factory(planned, network):
        log.warning("%s", note)
    return network


def check_numbers(info: Images, num_classes: int) -> None:
    """Raise InputError for a label that a model of num_classes has no logit for."""
    if isinstance(info, BetonInfo):
        check_labels(info, num_classes)
    elif int(info.labels.max()) >= num_classes:
        expected = f"labels from 0 to {num_classes - 1} (num_classes = {num_classes})"
        raise InputError(info.path, expected, str(int(info.labels.max())))


def as_attacked(config: EvaluationConfig) -> AttackConfig:
    """Return the attack's config that names the same model."""
    return AttackConfig(name=config.name, model=config.model, num_classes=config.num_classes, noise=config.noise)


def image_set_of(info: Images, settings: DataConfig) -> ImageSet:
    if isinstance(info, Tensors):
        return describe_tensors(info.path)
    shape = settings.model_dump(include=SHAPE)
    data = PlannedData(path=info.path, fingerprint=info.fingerprint, **shape)
    return ImageSet(data, info.num_images, info.class_names)


def factory_shape(info: Images, factory: str, wanted: ImagesConfig) -> dict[str, Any]:
    """Return how images are brought to size: as the config says, else as the network does, else as they are."""
    said = stated(factory)
    if not isinstance(info, Tensors):
        return shape_of(wanted, None, said, info)
    refuse_shape(wanted)
    if said and said.resolution != info.resolution:
        expected = f"images of {said.resolution} pixels a side, as tensors are taken as they are"
        raise InputError(info.path, expected, str(info.resolution))
    return as_they_are_in(info)


def as_they_are_in(file: Tensors) -> dict[str, Any]:
    return {"resolution": file.resolution, "crop": "none", "crop_ratio": 1.0, "interpolation": "area"}


def refuse_shape(wanted: ImagesConfig) -> None:
    """Raise InputError for a key that would resize a file of tensors."""
    for key in wanted.model_dump(include=SHAPE, exclude_none=True):
        raise InputError(f"data.{key}", "none with a file of tensors, taken as they are", "one")


def open_images(run: RunDir, known: Config, config: EvaluationConfig) -> tuple[Images, DataConfig]:
    """Open the beton, its labels as the run's classes; return it and how its images are to be read."""
    wanted = config.data
    if wanted.beton is not None and is_tensors(wanted.beton):
        file = Tensors(wanted.beton)
        refuse_shape(wanted)
        check_numbers(file, known.model.num_classes)
        return file, known.data.model_copy(update=as_they_are_in(file))
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


def load_model(
    run: RunDir, known: Config, config: EvaluationConfig, settings: DataConfig, device: torch.device
) -> nn.Module:
    path = weights_path(run, config)
    if config.noise == "fresh" and not noises(known.model, known.kap):
        raise InputError("noise=fresh", f"a run with noise ({NOISE_KEYS})", "one without")
    attacked.check_network(run, known.model.factory)
    model = build_model(known.model, known.kap)
    load_weights(model, path)
    if known.engine.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    model.eval().requires_grad_(False).to(device)
    check_size(model, known, settings)
    return model


def check_size(model: nn.Module, known: Config, settings: DataConfig) -> None:
    """Raise InputError for a network that takes no images of another size than it was trained on."""
    if settings.resolution != known.data.resolution:
        place = f"data.resolution={settings.resolution}"
        with torch.no_grad(), as_before(model):
            logits_of(model, 2, settings.resolution, known.model.num_classes, place)
