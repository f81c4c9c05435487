"""A model with the gradient of another: backward pass differentiable approximation.

Athalye, Carlini & Wagner 2018, https://arxiv.org/abs/1802.00420, section 4.1: where a defence has a step without a
useful gradient (rounding, JPEG), the attack goes forward through the model and backward through something like it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kapdist.attack.kept import Kept
from kapdist.attack.own.call import where
from kapdist.errors import InputError
from kapdist.models.factory import find_factory, first_on_path, folder_of, parts_of, place_of, said

KEY = "gradient_of"


class StraightThrough(nn.Module):
    """Returns the model's logits, bit by bit, with the gradient of another module's.

    Args:
        model: images to logits.
        smooth: like it, differentiable; may share its parts.
    """

    def __init__(self, model: nn.Module, smooth: nn.Module) -> None:
        super().__init__()
        self.model, self.smooth = model, smooth
        self.training = False

    def passes(self, images: Tensor) -> int:
        """Return how many networks these images pass: without a gradient, the model alone."""
        return 2 if images.requires_grad and torch.is_grad_enabled() else 1

    def forward(self, images: Tensor) -> Tensor:
        if self.passes(images) == 1:
            alone: Tensor = self.model(images)
            return alone
        with torch.no_grad():
            logits = self.model(images)
        straight: Tensor = Straight.apply(logits, self.smooth(images))
        return straight


class Straight(torch.autograd.Function):
    """Logits, and the gradient of other ones."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, smooth: Tensor) -> Tensor:
        ctx.dtype = smooth.dtype
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


def with_gradient_of(model: nn.Module, function: str) -> StraightThrough:
    """Return the model with the gradient of the module that a function, `FILE.py:function`, makes of it.

    Raises:
        InputError: the function fails, returns no module or changes the model.
    """
    place, make = place_of(function, KEY), find_factory(function, KEY)
    before = Kept(model, attributes=True)
    try:
        with first_on_path(folder_of(parts_of(function, KEY)[0])):
            smooth = make(model)
    except Exception as error:
        expected = "a function that returns a module when called with the model"
        raise InputError(place, expected, f"{said(error)} ({where(error, make)})") from error
    if not isinstance(smooth, nn.Module):
        raise InputError(place, "an nn.Module to be returned", f"a {type(smooth).__name__}")
    if changed := before.change():
        expected = "a module made beside the model, which stays as it is (copy.deepcopy(model))"
        raise InputError(place, expected, f"{changed} changed")
    return StraightThrough(model, smooth.eval().requires_grad_(False))
