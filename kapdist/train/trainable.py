"""A network by other people, seen to train before its run begins."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.models.factory import place_of, said
from kapdist.models.shown import check_images_kept, check_logits, shown_images
from kapdist.plan.training import Plan, together

log = logging.getLogger(__name__)


def check_trainable(model: nn.Module, config: Config, plan: Plan) -> None:
    """Show the network as few images as a step may, of every side, and freeze what no gradient reaches.

    Its buffers, its noise and torch's generators are afterwards what they were. Without a gradient a parameter is
    never changed in any case, but ranks would wait for one.

    Raises:
        InputError: it fails, changes its images, does not give (batch, num_classes) finite logits, has no parameter
            to train, or one that is not float32.
    """
    place = place_of(str(config.model.factory))
    check_parameters(model, place)
    num_images = 1 if together(config, plan.smallest_part) == 1 else 2
    sides = sorted({plan.ramp.first, plan.ramp.last})
    reached: set[int] = set()
    with as_before(model), kap.noise(model, "off"):
        for side in sides:
            logits = logits_of(model.train(), num_images, side, config.model.num_classes, place)
            reached |= reached_from(logits, model)
        logits_of(model.eval(), 2, config.data.resolution, config.model.num_classes, place)
        check_images_kept(model, place, config.data.resolution)
    model.train()
    freeze_others(model, reached, place)


def check_parameters(model: nn.Module, place: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            expected = "parameters in float32 (engine.precision says in what the steps are computed)"
            raise InputError(place, expected, f"{name} in {str(parameter.dtype).removeprefix('torch.')}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(place, "a network with parameters to train", "none that requires a gradient")


@contextlib.contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Give buffers and generators back what they had."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters()}
    gpus = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=gpus):
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def logits_of(model: nn.Module, num_images: int, side: int, num_classes: int, place: str) -> Tensor:
    """Return the logits, (num_images, num_classes), of images of this side."""
    images = shown_images(model, side)[:num_images]
    shape, mode = tuple(images.shape), "training" if model.training else "evaluation"
    expected = f"logits (batch, classes) = ({num_images}, {num_classes}) of images {shape} in {mode} mode"
    try:
        logits = model(images)
    except Exception as error:
        raise InputError(place, expected, said(error)) from error
    if not isinstance(logits, Tensor):
        raise InputError(
            place, expected, f"a {type(logits).__name__} (auxiliary heads? its arguments leave them out)"
        )
    if tuple(logits.shape) != (num_images, num_classes):
        hint = "model.num_classes, or the factory's own number in model.arguments"
        raise InputError(place, expected, f"{tuple(logits.shape)} ({hint})")
    check_logits(logits, place, images, num_classes)
    return logits


def reached_from(logits: Tensor, model: nn.Module) -> set[int]:
    """Return the ids of the parameters that a gradient of the logits reaches."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not logits.requires_grad:
        return set()
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def freeze_others(model: nn.Module, reached: set[int], place: str) -> None:
    if not reached:
        raise InputError(place, "logits that depend differentiably on the parameters", "logits without a gradient")
    others = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached]
    for _, parameter in others:
        parameter.requires_grad_(False)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log.warning("%s: no gradient reaches %s%s: not trained", place, others[0][0], more)
