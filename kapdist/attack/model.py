"""The classifier under attack: a run's own model or any other, checked before anything runs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import nn

from kapdist.config import KapConfig, ModelConfig
from kapdist.errors import InputError, first_line
from kapdist.kap import fold, noise
from kapdist.models.build import build_model
from kapdist.models.factory import call_factory, check_factory, check_state
from kapdist.models.imported import place_of
from kapdist.models.normalised import as_stated
from kapdist.models.weights import load_weights
from kapdist.models.zoo import as_published, with_classes
from kapdist.records.attack_plan import PlannedModel
from kapdist.run.paths import FACTORY, RunDir, weights_sha256

log = logging.getLogger(__name__)

FOLDED_ROUNDING = 1e-3  # of the largest logit


def load_model(source: PlannedModel, run: Path) -> nn.Module:
    """Build the classifier, on the CPU, in eval mode, frozen.

    Frozen because FAB calls `.backward()`, which would fill (and pay for) the gradients of all parameters.

    Raises:
        InputError: it cannot be built, or its weights are not those of `source.weights_sha256`.
    """
    if source.factory is None:
        assert source.architecture is not None
        sections = ModelConfig(**source.architecture["model"]), KapConfig(**source.architecture["kap"])
        model = build_model(*sections)
        if sections[0].factory is not None:
            check_factory(sections[0].factory, source.factory_sha256)
    else:
        model = outside_model(source, source.factory)
    weights = source.weights_file(run)
    if weights is not None:
        check_sha256(weights, file_sha256_of(weights), source.weights_sha256)
        load_weights(model, weights)
    else:
        check_sha256(place_of(str(source.factory)), state_sha256(model), source.weights_sha256)
    model = model.eval().requires_grad_(False)
    return fast(model, source) if source.factory is None else model


def outside_model(source: PlannedModel, factory: str) -> nn.Module:
    arguments = as_published(factory, with_classes(factory, source.arguments, source.num_classes))
    model = call_factory(factory, arguments)
    check_factory(factory, source.factory_sha256)
    check_state(model, place_of(factory))
    if source.mean is None or source.std is None:
        return model
    return as_stated(model, factory, source.mean, source.std)


def fast(model: nn.Module, source: PlannedModel) -> nn.Module:
    """Return a model of our own in the form that computes the same logits soonest."""
    model = fold(model, norms=True) if source.folded else model
    # What fold puts in the place of norms is new, and so in training mode.
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def can_fold(source: PlannedModel, run: Path, resolution: int) -> bool:
    """Return whether a network by other people stays the same function when it is folded.

    torch.fx may not follow its forward, or it may use a convolution's weights in a way of its own.
    """
    images = torch.rand(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    model = load_model(source.model_copy(update={"folded": False}), run)
    try:
        folded = fast(model, source.model_copy(update={"folded": True}))
    except ValueError as error:
        log.warning("attacked as it is, not folded: %s", first_line(error))
        return False
    with torch.no_grad(), noise(model, "off"):
        one, other = model(images), folded(images)
    if (one - other).abs().max() <= FOLDED_ROUNDING * one.abs().max():
        return True
    log.warning("attacked as it is: folded it would have other logits")
    return False


def check_network(run: RunDir, factory: str | None) -> None:
    """Refuse other code of a network by other people than a run began with.

    Raises:
        InputError: names the factory and both sha256.
    """
    if factory is not None and run.begun and FACTORY in (recorded := run.recorded()):
        check_factory(factory, recorded[FACTORY])


def file_sha256_of(path: Path) -> str:
    if not path.is_file():
        raise InputError(path, "weights (a finished run has model.safetensors)", "no such file")
    return weights_sha256(path)


def check_sha256(place: object, found: str, planned: str) -> None:
    if planned not in ("", found):  # empty while the plan is being made
        hint = "the weights that were planned" if isinstance(place, Path) else "the same weights at every call"
        raise InputError(place, f"{hint} (sha256 {planned[:12]})", f"sha256 {found[:12]}")


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of a state_dict: names, shapes, types and bytes, in order.

    Raises:
        InputError: it holds what has no bytes.
    """
    check_state(model, "the model")
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
