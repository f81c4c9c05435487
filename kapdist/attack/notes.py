"""What a reader of an attack's numbers should know of how it was made: the notes of its plan."""

from __future__ import annotations

import torch
from torch import nn

import kapdist.attack.images as images_of
from kapdist.attack.ball import vacuous_eps
from kapdist.attack.images import ImageSet
from kapdist.config import AttackConfig, Config
from kapdist.models import zoo
from kapdist.models.zoo import not_heeded, remark_of
from kapdist.records.attack_plan import AttackPlan, Norm, PlannedData, PlannedModel


def notes_on_noise(config: AttackConfig, draws: int) -> list[str]:
    if config.noise != "fresh" or draws > 1:
        return []
    name = "the library's own average over gradients" if config.version == "rand" else "no average over the noise"
    return [
        f"{name}, for comparison: one noisy draw decides each success, so harmless noise lowers the accuracy too "
        "(version eot-standard averages inside the model)"
    ]


def notes_on_precision(dtype: torch.dtype) -> list[str]:
    if dtype == torch.float32:
        return []
    return [f"the model's logits are {str(dtype).removeprefix('torch.')}; attacks see them as float32"]


def notes_on_functions(functions: dict[str, str | None], gradient_of: str | None) -> list[str]:
    """Say what is the user's own: a reader cannot know it, and may ask for the file."""
    files = {name: f"sha256 {sha256[:12]}" if sha256 else "of no file" for name, sha256 in functions.items()}
    notes = [
        f"{name} ({file}) is an attack of the user's own" for name, file in files.items() if name != gradient_of
    ]
    if gradient_of:
        notes.append(f"gradients are those of {gradient_of} ({files[gradient_of]}), the logits the model's own")
    return notes


def notes_on_size(config: AttackConfig, data: PlannedData) -> list[str]:
    """Say where images do not come to size as the model's own configuration states."""
    said = zoo.stated(config.model.factory) if config.model.factory is not None else None
    if said is None:
        return []
    own = images_of.as_stated(said)
    taken = data.model_dump(include=set(own))
    if data.crop != "none":
        differs = [key for key in own if own[key] != taken[key]]
    else:
        differs = ["resolution"] if own["resolution"] != data.resolution else []
    if not differs:
        return []
    told = ", ".join(f"{key} {own[key]:.4g}" if key == "crop_ratio" else f"{key} {own[key]}" for key in differs)
    return [f"the model's own configuration states another way to its images: {told}"]


def notes_on_classes(run_config: Config | None, model: PlannedModel, image_set: ImageSet) -> list[str]:
    """Say where labels are numbers alone: a run's classes have names, a factory's do not."""
    if run_config is not None or image_set.num_classes == model.num_classes:
        return []
    return [
        f"the images' {image_set.num_classes} classes are taken for the first of the model's {model.num_classes}"
    ]


def notes_on_factory(model: PlannedModel, network: nn.Module) -> list[str]:
    """Say what a network's own configuration has to say, and nothing does."""
    if model.factory is None:
        return []
    remarks = [remark_of(model.factory), None if model.mean else not_heeded(network, model.factory)]
    return [remark for remark in remarks if remark]


def notes_of_factory(plan: AttackPlan) -> list[str]:
    """Return the notes of a plan that are on its factory's network, and so on whatever is asked of it."""
    return [note for note in plan.notes if plan.model.factory and note.startswith(plan.model.factory)]


def notes_on_eps(norm: Norm, eps: float, image_set: ImageSet) -> list[str]:
    limit = vacuous_eps(norm, 3 * image_set.data.resolution**2)
    if eps < limit:
        return []
    return [f"{norm} eps {eps:g} says nothing: from {limit:g} on every image can be turned into the same grey"]
