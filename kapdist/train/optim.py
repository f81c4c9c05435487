"""SGD with momentum or AdamW; weight decay by module type; moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kapdist.config import OptimConfig

DECAYED = (nn.modules.conv._ConvNd, nn.Linear)


def parameter_groups(model: nn.Module, weight_decay: float, decay_norms: bool = False) -> list[dict[str, object]]:
    """Split parameters into weights of convolutions and linear layers, which decay, and the rest, which may.

    Chosen by module type: a filter for "bn" in the name misses the norms of downsample branches.
    """
    weights: list[Tensor] = []
    rest: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (weights if isinstance(module, DECAYED) and name == "weight" else rest).append(parameter)
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": weight_decay if decay_norms else 0.0},
    ]


def make_optimizer(model: nn.Module, config: OptimConfig, fused: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of a model; the learning rate is written by the engine at every step.

    Fused, for GPUs, it takes a step of all weights in one launch, skips one that overflowed without being told by
    the host, and has its rate on the device. On CPUs it is not: its last bits are others than those of old runs.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay_norms)
    device = next(model.parameters()).device
    lr = torch.tensor(config.lr, device=device) if fused else config.lr
    return OPTIMIZERS[config.name](groups, config, lr=lr, fused=fused or None)


def make_sgd(groups: list[dict[str, object]], config: OptimConfig, **settings: Any) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **settings)
    if settings["fused"] and config.momentum:
        # torch would begin with memory as it finds it, and leave it so where the first step overflows.
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def make_adamw(groups: list[dict[str, object]], config: OptimConfig, **settings: Any) -> torch.optim.Optimizer:
    lr = settings["lr"]
    recorded = isinstance(lr, Tensor) and lr.is_cuda  # torch wants to be told that a graph may hold its steps
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, capturable=recorded, **settings)


OPTIMIZERS = {"sgd": make_sgd, "adamw": make_adamw}


class MovingAverage(AveragedModel):
    """Exponential moving average of weights and norm statistics: torch's values and state, in one kernel.

    torch asks the device how many updates there were, twice a step, and averages each count of batches by itself:
    waits for the GPU, and several launches for each count. Here the first update is known, the number of updates is
    the host's, and counts of batches are the model's own tensors.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.decay = decay
        self.n_averaged = self.n_averaged.cpu()
        self.begun = False
        self.places: list[tuple[Tensors, Tensors, str]] = []

    def update_parameters(self, model: nn.Module) -> None:
        self.average(model)
        self.n_averaged += 1

    @torch.no_grad()
    def average(self, model: nn.Module) -> None:
        """Update on the device alone; whoever calls it adds to n_averaged."""
        self.places = self.places or list(places(self.module, model))
        own, theirs = [], []
        for mine, others, name in self.places:
            tensor = others[name]
            if tensor.is_floating_point():
                own.append(mine[name])
                theirs.append(tensor)
            else:
                mine[name] = tensor
        if self.begun:
            torch._foreach_lerp_(own, theirs, 1 - self.decay)
        else:
            torch._foreach_copy_(own, theirs)
        self.begun = True

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        loaded = super().load_state_dict(state, strict, assign)
        self.begun = bool(self.n_averaged > 0)
        return loaded


Tensors = dict[str, Any]


def places(average: nn.Module, model: nn.Module) -> Iterator[tuple[Tensors, Tensors, str]]:
    """Yield where each tensor of a model and of its average lies, once: a network may put another one there."""
    seen: set[int] = set()
    for mine, others in zip(average.modules(), model.modules(), strict=True):
        for own, theirs in ((mine._parameters, others._parameters), (mine._buffers, others._buffers)):
            for name, tensor in theirs.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield own, theirs, name


def make_ema(model: nn.Module, config: OptimConfig) -> MovingAverage | None:
    """Return the exponential moving average of weights and norm statistics, None if the config keeps none."""
    return MovingAverage(model, config.ema_decay) if config.ema_decay else None
