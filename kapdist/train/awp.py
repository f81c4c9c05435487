"""Adversarial weight perturbation: Wu et al. 2020, https://arxiv.org/abs/2004.05884, section 4 and algorithm 1.

The weights w are updated by the gradient at w + v, where v raises the loss of the adversarial images:

    v_l = gamma ||w_l|| g_l / ||g_l||,  g the gradient of the loss at w, for each layer l by itself

One step and one alternation, as published. Layers are convolutions and linear layers, their weights alone; norms
and biases stay. In place of a copy of the model the weights themselves are moved, and put back to the bit before
the update: weight decay is that of w, where the published code has it of w + v.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kapdist.engine import Ranks
from kapdist.train.optim import DECAYED


def perturbed_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return what is perturbed of a model, each once: weights of convolutions and linear layers that learn."""
    weights = dict.fromkeys(module.weight for module in model.modules() if isinstance(module, DECAYED))
    return [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]


def gradients(losses: Iterable[Callable[[], Tensor]], weights: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """Return the gradients of a sum of losses over all ranks; what the next backward adds to stays as it is."""
    total = torch.zeros(sum(weight.numel() for weight in weights), device=weights[0].device)
    for loss in losses:
        found = torch.autograd.grad(loss(), weights, materialize_grads=True)
        total += torch.cat([gradient.reshape(-1) for gradient in found])
    parts = ranks.sum(total).split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def worst_step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """Return v of one layer; zero where the gradient is none, or is not finite as of fp16."""
    length = torch.linalg.vector_norm(gradient)
    size = gamma * torch.linalg.vector_norm(weight.detach())
    return torch.where((length > 0) & length.isfinite(), size * (gradient / length), 0)


@contextlib.contextmanager
def moved(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add a step to each of the weights, and give them their own bits back at the end."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_add_(list(weights), list(steps))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)
