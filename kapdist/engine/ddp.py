"""The reference engine: DistributedDataParallel with autocast; the same code for one process."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kapdist.config import EngineConfig
from kapdist.engine.base import Engine


class DDPEngine(Engine):
    """Norm statistics are those of rank 0, handed out where they are read: DDP never sends a buffer."""

    def start(self, config: EngineConfig) -> None:
        self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=config.precision == "fp16")
        # One static graph per batch size: an epoch's batches differ by at most one image.
        network: Any = torch.compile(self.module, dynamic=False) if config.compile else self.module
        self.alone = network
        self.network = network if self.ranks.world_size == 1 else wrap(network)

    def forward_each(self, *batches: Tensor) -> tuple[Tensor, ...]:
        self.begin_forward()
        with self.autocast():
            if self.ranks.world_size == 1:
                return tuple(self.network(images) for images in batches)
            return self.network(*batches)

    def forward_alone(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.alone(images)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        with self.network.no_sync() if more and self.ranks.world_size > 1 else nullcontext():
            yield

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def take_step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


class Reached(nn.Module):
    """A network that takes several batches in one forward, which is all that DDP lets one backward follow.

    Without any it returns a number whose backward reaches every parameter once.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...] | Tensor:
        if batches:
            return tuple(self.network(images) for images in batches)
        return torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()


def wrap(network: nn.Module) -> DistributedDataParallel:
    """Return DDP around a network, its buckets in the order that they keep.

    After its first backward DDP cuts buckets anew, in the order in which gradients arrived, and from three ranks on
    a sum depends on a gradient's place in its bucket: the first step of a process would add in another order than
    all others, and a run that is resumed would have other bits. So the first backward is one that no step needs: it
    goes through no layer, so it draws nothing and no norm counts it, and parameters arrive last first, which is
    about the order of a real one. Its gradients are dropped.
    """
    # Without device_ids, on GPUs too: everything is where it should be, and with them a forward must have inputs.
    silent: dict[str, Any] = {sends_buffers(): False}
    wrapped = DistributedDataParallel(Reached(network), gradient_as_bucket_view=True, **silent)
    wrapped().backward()
    wrapped.zero_grad(set_to_none=True)
    return wrapped


def sends_buffers() -> str:
    """Return the argument of DDP that has it send buffers; the older name brings a warning beside the newer."""
    names = "forward_sync_buffers", "broadcast_buffers"
    return next(name for name in names if name in inspect.signature(DistributedDataParallel.__init__).parameters)
