"""One run's topography: every layer, the maps, the way there, the noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.errors import InputError
from kapdist.records.topography import (
    ASKED,
    LEVEL,
    LayerTopography,
    Measure,
    NoiseLevel,
    Quantity,
    Stage,
    StageLayer,
    SubjectTopography,
)
from kapdist.statistics.holm import holm
from kapdist.topography.images import Images
from kapdist.topography.layers import Layer, layers_of
from kapdist.topography.null import contrast_and_p, measure, orders_of
from kapdist.topography.preferences import class_map, kernel_pictures, orientations
from kapdist.topography.responses import Moments, moments_of
from kapdist.topography.similarity import gram_of_kernels, is_silent
from kapdist.topography.subject import Moment, Subject, last_step
from kapdist.topography.subject import moments_of as moments_of_training
from kapdist.topography.variance import Noise, moved_by, signal_of

log = logging.getLogger(__name__)

STAGE_IMAGES = 64
BEHIND: dict[Quantity, Quantity] = {"stored": "averaged", "responses": "averaged_responses"}
TOO_FEW = "fewer than three kernels, or all of them neighbours"
Tick = Callable[[int], None]
Done = TypeVar("Done")


@dataclass(frozen=True)
class Settings:
    """What is measured of every run."""

    layout: str
    permutations: int
    seed: int
    noises: tuple[Noise, ...]
    noisy_images: int
    threads: int


@dataclass(frozen=True)
class Responses:
    """A network, its layers in the order of their calls, and what they answered."""

    model: nn.Module
    layers: list[Layer]
    moments: dict[str, Moments]
    logits: Tensor


def measure_subject(
    subject: Subject, images: Images, settings: Settings, device: torch.device, tick: Tick
) -> SubjectTopography:
    """Return everything that a record has of one run.

    Raises:
        InputError: responses are not finite: nothing is like or unlike them.
    """
    shown = answered(subject.model(device), images, images.count, settings, tick)
    if odd := not_finite(shown):
        raise InputError(subject.run.root, "finite responses", f"NaN or infinity in {odd}")
    found = with_holm(side_by_side(lambda layer: layer_topography(layer, shown.moments, settings), shown, settings))
    pictures = pictures_of(shown, images, settings)
    seen = (stage_of(moment, images, settings, device, tick) for moment in moments_of_training(subject))
    stages = [stage for stage in seen if stage is not None]
    return SubjectTopography(
        run=subject.label,
        kind=subject.kind,
        pool_size=subject.config.kap.pool_size,
        noise_std=subject.config.kap.noise_std,
        weights=subject.said,
        weights_sha256=subject.weights_sha256,
        is_final=subject.is_final,
        accuracy=accuracy(shown.logits, images),
        layers=tuple(found),
        stages=(*stages, last_stage(subject, images.count, found)),
        noise=noise_levels(shown, images, settings, tick),
        notes=tuple(notes_on(subject, found)),
        **pictures,
    )


def answered(model: nn.Module, images: Images, count: int, settings: Settings, tick: Tick) -> Responses:
    """Show a network some images, its noise off."""
    layers = layers_of(model, settings.layout)
    with kap.noise(model, "off"):
        moments, logits = moments_of(
            model, layers, images.first(count), len(images.class_names), settings.seed, tick
        )
    place = {name: number for number, name in enumerate(moments)}
    ordered = sorted(layers, key=lambda layer: place.get(layer.name, len(place)))
    return Responses(model, ordered, moments, logits)


def not_finite(shown: Responses) -> str | None:
    """Return the first layer whose responses, or their products in single precision, are not finite numbers."""
    return next((name for name, found in shown.moments.items() if not found.product.isfinite().all()), None)


def side_by_side(work: Callable[[Layer], Done], shown: Responses, settings: Settings) -> list[Done]:
    """Return what is found of each layer, a thread for each of some: their matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(settings.threads) as pool:
            return list(pool.map(work, shown.layers))
    finally:
        torch.set_num_threads(threads)


def layer_topography(layer: Layer, moments: dict[str, Moments], settings: Settings) -> LayerTopography:
    """Return one layer with all that is measured of it."""
    answers = moments.get(layer.name)
    facts = LayerTopography(
        name=layer.name,
        kernels=layer.kernels,
        grid=layer.grid,
        pool_size=layer.pool_size,
        pool_stride=layer.pool_stride,
        groups=layer.conv.groups,
        inputs=layer.conv.weight[0].numel(),
        observations=answers.count if answers else 0,
        silent=int(is_silent(answers.covariance.diagonal()).sum()) if answers else 0,
    )
    before, after = layer.pairs(settings.seed), layer.pairs(settings.seed, after=True)
    if before is None:
        return facts.model_copy(update={"not_asked": TOO_FEW})
    orders = orders_for(layer, settings)
    found: dict[str, Measure] = {}
    for quantity, gram in grams_of(layer, answers).items():
        found[quantity] = measure(gram, before, orders, layer.identity)
        if layer.is_average and after is not None:
            found[BEHIND[quantity]] = measure(gram, after, orders, layer.average, is_average=True)
    return facts.model_copy(update=found)


def grams_of(layer: Layer, answers: Moments | None) -> dict[Quantity, Tensor]:
    """Return the products of a layer's kernels, and of their responses, that there are."""
    grams: dict[Quantity, Tensor] = {}
    if layer.conv.groups < layer.kernels:  # of one kernel each: no two of them see the same channels
        weight, scale = layer.conv.weight.detach().cpu(), layer.scale
        grams["stored"] = gram_of_kernels(weight, layer.conv.groups, None if scale is None else scale.cpu())
    if answers is not None:
        grams["responses"] = answers.covariance
    return grams


def with_holm(layers: Sequence[LayerTopography]) -> list[LayerTopography]:
    """Return the layers with p-values of what is asked corrected over all of them, where any could be found."""
    for quantity in ASKED:
        measured = [layer.measure(quantity) for layer in layers]
        if too_few_permutations([found for found in measured if found]):
            continue
        corrected = iter(holm([found.p for found in measured if found]))
        layers = [
            layer.model_copy(update={quantity: found.model_copy(update={"p_holm": next(corrected)})})
            if found
            else layer
            for layer, found in zip(layers, measured, strict=True)
        ]
    return list(layers)


def too_few_permutations(found: Sequence[Measure]) -> bool:
    """Tell whether not even the least p that so many permutations give is found over so many layers."""
    least = [1 / (1 + one.permutations) for one in found]
    return bool(least) and min(holm(least)) > LEVEL


def pictures_of(shown: Responses, images: Images, settings: Settings) -> dict[str, object]:
    """Return the maps: kernels and orientations of the first layer, if it sees the image, classes of the last."""
    called = [layer for layer in shown.layers if layer.name in shown.moments]
    asked = [(layer, pairs) for layer in called if (pairs := layer.pairs(settings.seed))]
    if not asked:
        return {}
    found: dict[str, object] = {}
    (first, near), (last, far) = asked[0], asked[-1]
    channels = images.batches[0][0].shape[1]
    if first.conv.in_channels == channels and first.conv.groups == 1:
        found["kernels"] = kernel_pictures(first)
        if min(first.conv.kernel_size) > 1:
            weight = first.conv.weight.detach().cpu()
            found["orientations"] = orientations(first, weight, near, orders_for(first, settings))
    found["classes"] = class_map(last, shown.moments[last.name], far, orders_for(last, settings))
    return found


def orders_for(layer: Layer, settings: Settings) -> Tensor:
    return orders_of(layer.kernels, layer.conv.groups, settings.permutations, settings.seed, layer.name)


def stage_of(moment: Moment, images: Images, settings: Settings, device: torch.device, tick: Tick) -> Stage | None:
    """Return what is left of a step of the training; None where it was pruned meanwhile, or is not finite."""
    count, network = min(STAGE_IMAGES, images.count), moment.model(device)
    if network is None:
        return None
    shown = answered(network, images, count, settings, tick)
    if odd := not_finite(shown):
        log.warning("the network at step %s is passed over: NaN or infinity in %s", moment.step, odd)
        return None

    def work(layer: Layer) -> StageLayer:
        pairs, found = layer.pairs(settings.seed), {}
        if pairs is not None:
            orders = orders_for(layer, settings)
            grams = grams_of(layer, shown.moments.get(layer.name))
            found = {quantity: contrast_and_p(gram, pairs, orders) for quantity, gram in grams.items()}
        return StageLayer(name=layer.name, stored=found.get("stored"), responses=found.get("responses"))

    layers = side_by_side(work, shown, settings)
    return Stage(step=moment.step, what=moment.what, num_images=count, layers=tuple(layers))


def last_stage(subject: Subject, count: int, layers: Sequence[LayerTopography]) -> Stage:
    """Return the measured weights as the end of the way."""

    def pair(found: Measure | None) -> tuple[float, float] | None:
        return None if found is None else (found.contrast, found.p)

    rows = (StageLayer(name=one.name, stored=pair(one.stored), responses=pair(one.responses)) for one in layers)
    return Stage(step=last_step(subject), what="measured weights", num_images=count, layers=tuple(rows))


def noise_levels(shown: Responses, images: Images, settings: Settings, tick: Tick) -> tuple[NoiseLevel, ...]:
    """Return how far each noise moves the network, its own noise off."""
    signal = signal_of(shown.layers, shown.moments, shown.logits)
    called = [layer for layer in shown.layers if layer.name in shown.moments]
    batches = images.first(settings.noisy_images)
    with kap.noise(shown.model, "off"):
        return tuple(
            moved_by(shown.model, called, batches, shown.logits, signal, noise, settings.seed, tick)
            for noise in settings.noises
        )


def accuracy(logits: Tensor, images: Images) -> float:
    labels = torch.cat([labels for _, labels in images.batches])
    return float((logits.argmax(1) == labels).double().mean())


def notes_on(subject: Subject, layers: Sequence[LayerTopography]) -> list[str]:
    """Return what a reader has to know of one run."""
    notes = []
    if not subject.run.saved():
        notes.append(
            "no checkpoint is left: of its way there are the first step's weights, where they can be had, the "
            "last's, and the best's where they are kept"
        )
    if not subject.is_final:
        notes.append("the run has not finished: its newest checkpoint was looked at")
    if absent := [layer.name for layer in layers if not layer.observations]:
        notes.append(f"no call was seen of {', '.join(absent)}: there are no responses of it")
    if left := [layer.name for layer in layers if layer.not_asked]:
        notes.append(f"not asked of {', '.join(left)}: {TOO_FEW}")
    asked = max(([one for layer in layers if (one := layer.measure(quantity))] for quantity in ASKED), key=len)
    if too_few_permutations(asked):
        notes.append(
            f"{asked[0].permutations:,} permutations are too few to find neighbours alike beyond chance in any of "
            f"{len(asked)} layers: it takes {round(len(asked) / LEVEL) - 1:,} (--permutations)"
        )
    silent = sum(layer.silent for layer in layers)
    if silent:
        notes.append(f"{silent} kernels have no response that varies")
    return notes
