"""A batch norm for tensors of a CPU whose batch is that of all ranks. Its import brings torch's compiler along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class BatchNormOverRanks(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for tensors of a CPU: (batch, channels, ...), as many dimensions as there are.

    Its gradient goes through the statistics to the images of all ranks. Every rank must call it equally often.
    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1, over all ranks' batches.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, found {input.dim()}")

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        values = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        dims = [0, *range(2, values.dim())]
        shape = [1, -1, *[1] * (values.dim() - 2)]
        own = torch.full((1,), values.numel() / values.shape[1], dtype=torch.float64)
        count = SumOverRanks.apply(own).item()
        mean = SumOverRanks.apply(values.sum(dims)) / count
        centred = values - mean.view(shape)
        var = SumOverRanks.apply(centred.square().sum(dims)) / count
        self.keep(mean.detach(), var.detach() * (count / max(count - 1, 1)))
        normed = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normed = normed * self.weight.view(shape)
        if self.bias is not None:
            normed = normed + self.bias.view(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def keep(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Take a batch's statistics into the running ones, as torch's norms do."""
        count, means, variances = self.num_batches_tracked, self.running_mean, self.running_var
        if not self.track_running_stats or count is None or means is None or variances is None:
            return
        count.add_(1)
        momentum = 1 / int(count) if self.momentum is None else self.momentum
        means.lerp_(mean.to(means.dtype), momentum)
        variances.lerp_(unbiased_var.to(variances.dtype), momentum)


class SumOverRanks(Function):
    """The sum of all ranks' tensors, which every rank has; what goes back to each is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverRanks.forward(ctx, gradients[0])
