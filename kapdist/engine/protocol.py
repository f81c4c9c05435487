"""What the loop asks of an engine. Schedule, EMA, data position and randomness stay outside of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class StepResult(NamedTuple):
    """What one optimizer step did."""

    grad_norm: Tensor | None
    """Norm of the gradient over all parameters before clipping, a scalar; None if it was not measured."""
    skipped: bool
    """True when fp16 overflowed and the weights stayed as they were."""


class Engine(Protocol):
    """Runs forward, backward and the optimizer over all ranks."""

    module: nn.Module
    """The model itself, under no wrapper."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, height, width), in autocast."""
        ...

    def forward_alone(self, images: Tensor) -> Tensor:
        """Return logits as `forward` does, on this rank alone: nothing is exchanged, and no backward is expected.

        What is differentiated is the caller's (torch.autograd.grad): gradients of parameters stay as they are.
        """
        ...

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Hold back the exchange of gradients inside this context while `more` parts of the batch follow."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        ...

    def step(self, lr: float, measure: bool) -> StepResult:
        """Update the weights at this learning rate and clear the gradients; measure their norm if asked to.

        Raises:
            FloatingPointError: the gradient is not finite, which no loss scale explains (some engines see it).
        """
        ...

    def sync_buffers(self) -> None:
        """Give every rank the buffers (norm statistics) of rank 0."""
        ...

    def state(self) -> dict[str, Any]:
        """Return weights, buffers, optimizer and scaler, as plain containers of tensors; every rank must ask.

        It is the same on all ranks and depends neither on their number nor on the engine.
        """
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        ...
