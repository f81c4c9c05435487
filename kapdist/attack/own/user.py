"""An attack that is a function of the user's: called on what is left of a chunk, and held to the rules of all.

    attack(model, images, labels, eps, generator) -> images

Whatever it says, an image counts as broken only where the model is asked again. What would make a verdict depend on
something else than the plan is refused: other random numbers than its generator's, a model that it changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.ball import Ball, drop_rounding
from kapdist.attack.counted import CountedModel
from kapdist.attack.forms import Forms
from kapdist.attack.kept import Kept
from kapdist.attack.own.call import INSTEAD, global_states, where
from kapdist.attack.watch import WatchedModel
from kapdist.errors import InputError
from kapdist.models.factory import first_on_path, folder_of, place_of, said
from kapdist.rng import derive_seed

log = logging.getLogger(__name__)

KEY = "attacks"
UserFunction = Callable[..., Any]


class UserAttack:
    """Calls a function of the user's.

    Args:
        model: images to logits; counts what it is asked.
        name: as the config names the function; its random numbers follow from it and from `seed`.
        function: called with gradients enabled.
    """

    def __init__(self, model: nn.Module, ball: Ball, name: str, function: UserFunction) -> None:
        self.model, self.ball, self.name, self.function = model, ball, name, function
        self.place = place_of(name, KEY)
        self.seed = 0

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, (batch, 3, height, width), what the function makes of the images, within the ball.

        Raises:
            InputError: the function fails, changes the model, draws from a global generator, or returns anything
                but float32 images of this shape, finite, in [0, 1] and within eps up to rounding.
        """
        generator = torch.Generator(images.device).manual_seed(derive_seed(self.seed, "own attack", self.name))
        self.model.eval()  # the counting around it too: others' attacks give back the mode that they found
        model, drawn = Kept(network_in(self.model)), global_states(images.device)
        try:
            found = self.call(images.clone(), labels.clone(), generator)
        finally:
            changed = model.change()
            if changed:
                model.restore()
        if changed:
            raise InputError(self.place, "an attack that leaves the model as it is", f"{changed} changed")
        self.check_drawn(drawn, images.device)
        return self.checked(found, images)

    def call(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        try:
            with torch.enable_grad(), first_on_path(folder_of(self.name.rpartition(":")[0])):
                return self.function(self.model, images, labels, self.ball.eps, generator)
        except InputError:  # the model's
            raise
        except Exception as error:
            log.error("%s failed:", self.name, exc_info=error)
            found = f"{said(error)} ({where(error, self.function)})"
            raise InputError(self.place, f"images {tuple(images.shape)} to be returned", found) from error

    def check_drawn(self, before: dict[str, Any], device: torch.device) -> None:
        after = global_states(device)
        for whose in before:
            if before[whose] != after[whose]:
                expected = f"random numbers of the generator that it is given alone ({INSTEAD[whose]})"
                raise InputError(self.place, expected, f"{whose} global one drawn from or seeded")

    def checked(self, found: Any, images: Tensor) -> Tensor:
        """Return the images; what rounding left just outside of the ball or of [0, 1] is brought back."""
        if not isinstance(found, Tensor):
            raise InputError(self.place, f"a tensor of images {tuple(images.shape)}", f"a {type(found).__name__}")
        if (found.shape, found.dtype, found.device) != (images.shape, images.dtype, images.device):
            raise InputError(self.place, f"images {form(images)}", form(found))
        if not found.isfinite().all():
            rows = int((~found.isfinite()).flatten(1).any(1).sum())
            raise InputError(self.place, "finite images", f"NaN or infinity in {rows} of {len(found)}")
        found = drop_rounding(found.detach().contiguous())
        low, high = found.min().item(), found.max().item()
        if low < 0 or high > 1:
            raise InputError(self.place, "images in [0, 1]", f"values from {low:g} to {high:g}")
        found = self.ball.pull_back(found, images)
        outside = int((~self.ball.inside(found, images)).sum())
        if outside:
            expected = f"images within {self.ball.norm} eps {self.ball.eps:g}, the clean one where none was found"
            furthest = self.ball.distance(found, images).max().item()
            raise InputError(self.place, expected, f"{outside} of {len(found)} beyond, up to {furthest:g}")
        return found


def network_in(model: Any) -> nn.Module:
    """Return the user's own model, without what counts and averages around it."""
    while isinstance(model, WatchedModel | AveragedModel | CountedModel | Forms):
        model = model.model
    network: nn.Module = model
    return network


def form(images: Tensor) -> str:
    return f"{tuple(images.shape)}, {str(images.dtype).removeprefix('torch.')}, on {images.device}"
