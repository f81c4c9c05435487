"""SGD with momentum or AdamW; weight decay by module type; moving average of weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

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


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a model; the learning rate is written by the engine at every step."""
    return OPTIMIZERS[config.name](parameter_groups(model, config.weight_decay, config.decay_norms), config)


def make_sgd(groups: list[dict[str, object]], config: OptimConfig) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def make_adamw(groups: list[dict[str, object]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


OPTIMIZERS = {"sgd": make_sgd, "adamw": make_adamw}


class MovingAverage(AveragedModel):
    """Exponential moving average of weights and norm statistics: torch's values and state, in a few kernels.

    torch asks the device how many updates there were, twice a step, and averages each count of batches by itself:
    waits for the GPU, and several launches for each count. Here counts are copied, and the first update is known.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.decay = decay
        self.begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        own, theirs = floats_and_counts(self.module), floats_and_counts(model)
        torch._foreach_copy_(own.counts, theirs.counts)
        if self.begun:
            torch._foreach_lerp_(own.floats, theirs.floats, 1 - self.decay)
        else:
            torch._foreach_copy_(own.floats, theirs.floats)
        self.begun = True
        self.n_averaged += 1

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        loaded = super().load_state_dict(state, strict, assign)
        self.begun = bool(self.n_averaged > 0)
        return loaded


class Tensors(NamedTuple):
    """The tensors of a model: those that are averaged, and whole numbers."""

    floats: list[Tensor]
    counts: list[Tensor]


def floats_and_counts(model: nn.Module) -> Tensors:
    found = Tensors([], [])
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        (found.floats if tensor.is_floating_point() else found.counts).append(tensor.detach())
    return found


def make_ema(model: nn.Module, config: OptimConfig) -> MovingAverage | None:
    """Return the exponential moving average of weights and norm statistics, None if the config keeps none."""
    return MovingAverage(model, config.ema_decay) if config.ema_decay else None
