"""The reference engine: DistributedDataParallel with autocast; the same code for one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kapdist.config import EngineConfig
from kapdist.engine.protocol import StepResult
from kapdist.engine.ranks import Ranks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DDPEngine:
    """See `protocol.Engine`. Weights stay in fp32; bf16 and fp16 are autocast, fp16 with loss scaling.

    Norm statistics are those of rank 0: DDP hands them out before every forward.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        ranks: Ranks,
        clip_grad_norm: float = 0.0,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.ranks = ranks
        self.precision = PRECISIONS[config.precision]
        self.clip_grad_norm = clip_grad_norm
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        # One static graph per batch size: an epoch's batches differ by at most one image.
        network: Any = torch.compile(module, dynamic=False) if config.compile else module
        self.alone = network
        self.network = network if ranks.world_size == 1 else wrap(network, ranks)

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.network(images)

    def forward_alone(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.alone(images)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, self.precision)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        with self.network.no_sync() if more and self.ranks.world_size > 1 else nullcontext():
            yield

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr: float, measure: bool) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip(self.module, self.clip_grad_norm) if measure or self.clip_grad_norm else None
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm, skipped=self.scaler.get_scale() < scale)

    def sync_buffers(self) -> None:
        broadcast(self.module.buffers(), self.ranks)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class Reached(nn.Module):
    """A network that, called without images, returns a number whose backward reaches every parameter once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor | None = None) -> Tensor:
        if images is not None:
            return self.network(images)
        return torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()


def wrap(network: nn.Module, ranks: Ranks) -> DistributedDataParallel:
    """Return DDP around a network, its buckets in the order that they keep.

    After its first backward DDP cuts buckets anew, in the order in which gradients arrived, and from three ranks on
    a sum depends on a gradient's place in its bucket: the first step of a process would add in another order than
    all others, and a run that is resumed would have other bits. So the first backward is one that no step needs: it
    goes through no layer, so it draws nothing and no norm counts it, and parameters arrive last first, which is
    about the order of a real one. Its gradients are dropped.
    """
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    wrapped = DistributedDataParallel(Reached(network), device_ids=device_ids, gradient_as_bucket_view=True)
    wrapped().backward()
    wrapped.zero_grad(set_to_none=True)
    return wrapped


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
