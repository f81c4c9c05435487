"""SGD with momentum; weight decay by module type; moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kapdist.config import OptimConfig

DECAYED = (nn.modules.conv._ConvNd, nn.Linear)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters into decayed (weights of convolutions and linear layers) and the rest.

    Chosen by module type: a filter for "bn" in the name misses the norms of downsample branches.
    """
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (decayed if isinstance(module, DECAYED) and name == "weight" else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return SGD over the model; the learning rate is written by the engine at every step."""
    groups = parameter_groups(model, config.weight_decay)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def make_ema(model: nn.Module, config: OptimConfig) -> AveragedModel | None:
    """Return the exponential moving average of weights and norm statistics, None if the config keeps none."""
    if not config.ema_decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
