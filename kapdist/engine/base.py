"""What the loop asks of an engine. Schedule, EMA, data position and randomness stay outside of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kapdist.config import EngineConfig
from kapdist.engine.norms import synchronise
from kapdist.engine.ranks import Ranks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What one optimizer step did."""

    grad_norm: Tensor | None
    """Norm of the gradient over all parameters before clipping, a scalar; None if it was not measured."""
    skipped: bool
    """True when fp16 overflowed and the weights stayed as they were."""


class Engine(ABC):
    """Runs forward, backward and the optimizer over all ranks.

    Weights stay in fp32, whole on every rank; bf16 and fp16 are autocast, fp16 with loss scaling. `module` is the
    model itself, under no wrapper.
    """

    scaler: torch.amp.GradScaler

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        ranks: Ranks,
        clip_grad_norm: float = 0.0,
    ) -> None:
        self.module, self.optimizer, self.ranks = module, optimizer, ranks
        self.precision = PRECISIONS[config.precision]
        self.clip_grad_norm = clip_grad_norm
        if config.sync_batch_norm:
            ranks.together(lambda: synchronise(module, ranks))
        self.start(config)

    @abstractmethod
    def start(self, config: EngineConfig) -> None:
        """Make what runs the model."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, height, width), in autocast."""
        return self.forward_each(images)[0]

    @abstractmethod
    def forward_each(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of several batches that one backward follows; norms see each by itself, in order."""

    @abstractmethod
    def forward_alone(self, images: Tensor) -> Tensor:
        """Return logits as `forward` does, on this rank alone: nothing is exchanged, and no backward is expected.

        Norms over ranks (engine.sync_batch_norm) that take a batch's statistics exchange them all the same: every
        rank must make as many passes.

        What is differentiated is the caller's (torch.autograd.grad): gradients of parameters stay as they are.
        """

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by before its backward; 1 but for fp16."""
        return self.scaler.get_scale()

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, self.precision)

    @abstractmethod
    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Hold back the exchange of gradients inside this context while `more` parts of the batch follow."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""

    def step(self, lr: float, measure: bool) -> StepResult:
        """Update the weights at this learning rate and clear the gradients; measure their norm if asked to.

        Raises:
            FloatingPointError: the gradient is not finite, which no loss scale explains (some engines see it).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return self.update(measure)

    def update(self, measure: bool) -> StepResult:
        """Update the weights, where every rank has the whole gradient after the last backward."""
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip(self.module, self.clip_grad_norm) if measure or self.clip_grad_norm else None
        scale = self.scaler.get_scale()
        self.take_step()
        return StepResult(grad_norm, skipped=self.scaler.get_scale() < scale)

    @abstractmethod
    def take_step(self) -> None:
        """Let the optimizer take a step that the scaler may skip, and clear the gradients."""

    def sync_buffers(self) -> None:
        """Give every rank the buffers (norm statistics) of rank 0."""
        broadcast(self.module.buffers(), self.ranks)

    def state(self) -> dict[str, Any]:
        """Return weights, buffers, optimizer and scaler, as plain containers of tensors; every rank must ask.

        It is the same on all ranks and depends neither on their number nor on the engine.
        """
        return {"model": self.module.state_dict()} | self.optimizer_state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.load_state_dict(state["model"])
        self.load_optimizer_state(state)

    def optimizer_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def clip(module: nn.Module, max_norm: float) -> Tensor:
    """Return the norm of the gradient; scale it down to `max_norm` where that is above 0."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Give every rank the tensors of rank 0, all of a type in one message."""
    if ranks.world_size == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for same in by_type.values():
        message = torch.cat([tensor.flatten() for tensor in same])
        torch.distributed.broadcast(message, src=0)
        for tensor, part in zip(same, message.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view(tensor.shape))
