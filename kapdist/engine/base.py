"""What the loop asks of an engine. Schedule, EMA, data position and randomness stay outside of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
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
    skipped: bool | None
    """True when fp16 overflowed and the weights stayed as they were; None if it was not measured."""


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
        self.begins_step = True
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
        """What a loss is multiplied by before its backward; 1 but for fp16. A GPU is waited for."""
        return self.scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times the loss scale; nothing is waited for."""
        return self.scaler.scale(loss)

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
        return self.stepped(lr, measure, lambda: self.descend(measure))

    def stepped(self, lr: float, measure: bool, compute: Callable[[], Tensor | None]) -> StepResult:
        """Let a step be computed, `descend` its end, at this learning rate; wait for a GPU only to measure."""
        for rate in {group["lr"] for group in self.optimizer.param_groups if isinstance(group["lr"], Tensor)}:
            rate.fill_(lr)  # where it is on the device, that of a captured step too
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if isinstance(group["lr"], Tensor) else lr
        scale = self.loss_scale if measure else None
        grad_norm = compute()
        return StepResult(grad_norm, skipped=None if scale is None else self.loss_scale < scale)

    def descend(self, measure: bool) -> Tensor | None:
        """Update the weights by the gradient of the last backward, which every rank has whole; return its norm."""
        self.begins_step = True
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip(self.module, self.clip_grad_norm) if measure or self.clip_grad_norm else None
        self.take_step()
        return grad_norm

    @abstractmethod
    def take_step(self) -> None:
        """Let the optimizer take a step that the scaler may skip, and clear the gradients."""

    def sync_buffers(self) -> None:
        """Give every rank the buffers (norm statistics) of rank 0."""
        broadcast(self.module.buffers(), self.ranks)

    def begin_forward(self) -> None:
        """Before the first forward of a step: give every rank what that may read of rank 0's buffers."""
        if self.begins_step and self.ranks.world_size > 1:
            broadcast(buffers_of_training(self.module), self.ranks)
        self.begins_step = False

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
        # How an update is computed is this process's own affair, and the rate every step's.
        groups = [
            theirs | settings_here(own)
            for theirs, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])


def settings_here(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in ("lr", "fused", "foreach", "capturable") if key in group}


def buffers_of_training(module: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that a forward in training may read: all that are saved but for the statistics of norms.

    Norms take the batch's in training. Their running ones matter where they are read or saved, and are handed out
    there: rank 0's follow from rank 0's images alone.
    """
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase):
            for name, buffer in part.named_buffers(recurse=False):
                if name not in part._non_persistent_buffers_set:
                    yield buffer


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
