"""Batch norms whose statistics are those of a batch over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kapdist.engine.ranks import Ranks
from kapdist.errors import InputError

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise(model: nn.Module, ranks: Ranks) -> None:
    """Put norms over all ranks in the place of a model's batch norms, with their parameters, statistics and names.

    torch.nn.SyncBatchNorm on GPUs; it takes no tensors of a CPU, and there the norm below does the same.

    Raises:
        InputError: a norm that is a batch norm and more, which would be lost.
    """
    if ranks.world_size == 1:
        return
    check(model)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) in PLAIN:
                setattr(parent, name, over_ranks(norm, ranks))


def check(model: nn.Module) -> None:
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    known = (*PLAIN, nn.SyncBatchNorm)
    others = [f"{name} ({type(norm).__name__})" for name, norm in norms.items() if type(norm) not in known]
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise InputError("engine.sync_batch_norm", "a model whose batch norms are torch's own", others[0] + more)
    if "" in norms:
        raise InputError("engine.sync_batch_norm", "a model with norms in it", "one that is a norm itself")


def over_ranks(norm: Any, ranks: Ranks) -> nn.Module:
    if ranks.device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    from kapdist.engine.norm_over_ranks import BatchNormOverRanks

    with torch.device("meta"):
        made = BatchNormOverRanks(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)
