"""A network in the forms that an attack passes through: exact where a verdict is decided, else as is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from kapdist.attack.graphs import Graphed
from kapdist.engine.numerics import tensor_float_32
from kapdist.records.attack_plan import AttackPlan

Precision = Literal["fp32", "tf32", "bf16"]


class Forms(nn.Module):
    """Images to logits, exactly; `rough` is the same in another precision.

    Args:
        model: frozen, in evaluation mode.
        precision: of `rough`, forward and back: float32 with factors of 10 bits (tf32, GPUs), or bfloat16 where
            autocast takes it.
        graphs_to: rows of the largest batch whose passes become CUDA graphs; 0: none do.
    """

    def __init__(self, model: nn.Module, precision: Precision, graphs_to: int = 0) -> None:
        super().__init__()
        self.model, self.precision, self.graphs_to = model, precision, graphs_to
        # Not the module itself, which would become a part of this one once more.
        self.exact: Callable[[Tensor], Tensor] = model.__call__
        self.rough: Callable[[Tensor], Tensor] = self.cast if precision == "bf16" else self.exact
        if graphs_to:
            exact = Graphed(self.exact, graphs_to)
            self.rough = exact if precision == "fp32" else Graphed(self.rough, graphs_to, self.rounding)
            self.exact = exact

    def forward(self, images: Tensor) -> Tensor:
        with tensor_float_32(False):
            return self.exact(images)

    def cast(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            logits: Tensor = self.model(images)
        return logits

    @contextlib.contextmanager
    def rounding(self) -> Iterator[None]:
        """Let passes in this block, back ones too, round as `rough` does."""
        with tensor_float_32(self.precision == "tf32"):
            yield


def forms_of(model: nn.Module, plan: AttackPlan, device: torch.device) -> nn.Module:
    """Return a model in the forms that its plan asks for; it alone, where that is all there is.

    Passes become CUDA graphs where no random number is drawn and no code but ours is run: in a graph nothing of it
    would run again.
    """
    graphs_to = plan.chunk_size if device.type == "cuda" and is_ours_alone(plan) else 0
    return Forms(model, plan.precision, graphs_to) if graphs_to or plan.precision != "fp32" else model


def rounding_of(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the block that attacks on a model are run in, whatever is around it."""
    forms = next((module for module in model.modules() if isinstance(module, Forms)), None)
    return forms.rounding() if forms else contextlib.nullcontext()


def is_ours_alone(plan: AttackPlan) -> bool:
    """Return whether the model is of kapdist's layers alone and draws nothing."""
    return plan.model.by_others is None and plan.noise == "off" and plan.gradient_of is None
