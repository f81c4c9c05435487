"""TRADES: Zhang et al. 2019, https://arxiv.org/abs/1901.08573, equation 5 and algorithm 1.

    min over the weights of  CE(f(x), y) + beta max over x' in the ball of KL(p(x) || p(x'))

beta is their 1 / lambda. The order within the divergence is that of their code, clean first. Gradients pass through
both of its sides, and through the clean images' loss.
"""

from __future__ import annotations

from torch import Tensor


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Return KL(p(x) || p(x')) of each image, (batch,), from logits (batch, classes)."""
    log_clean = clean.log_softmax(1)
    return (log_clean.exp() * (log_clean - adversarial.log_softmax(1))).sum(1)


def trades(cross_entropy: Tensor, clean: Tensor, adversarial: Tensor, beta: float) -> Tensor:
    """Return the loss, summed over images.

    Args:
        cross_entropy: of the clean logits, summed over images.
        clean: logits (batch, classes) of the images.
        adversarial: those of their adversarial images.
    """
    return cross_entropy + beta * divergence(clean, adversarial).sum()
