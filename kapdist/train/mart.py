"""MART: Wang et al. 2020, https://openreview.net/forum?id=rklOg6EFwS, equations 9 to 11.

    BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)),
    BCE(p', y) = -log p'_y - log(1 - max over k != y of p'_k)

x' maximises the cross-entropy within the ball; beta is their lambda. Gradients pass through every term. Logarithms
are taken of logits, where their code takes them of probabilities with 1e-4 or 1e-12 added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kapdist.train.trades import divergence


def mart(cross_entropy: Tensor, clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Return the loss, summed over images.

    Args:
        cross_entropy: of the adversarial logits, summed over images: BCE's first term.
        clean: logits (batch, classes) of the images.
        adversarial: those of their adversarial images.
        labels: (batch,).
    """
    doubt = 1 - clean.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return cross_entropy + (margin(adversarial, labels) + beta * divergence(clean, adversarial) * doubt).sum()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log(1 - the largest probability of a wrong class) of each image, (batch,): BCE's second term."""
    own = labels[:, None]
    rival = logits.detach().scatter(1, own, -torch.inf).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)
