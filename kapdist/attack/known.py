"""What a deterministic network was asked before has the answer that it had.

The library asks for much twice. Every step of FAB passes its new point forward to see whether it is adversarial;
where it is not, the next step passes the same point forward again for its gradient. The clean image is passed anew
for every target, and so is what an attack hands back. APGD takes a gradient of its last point, which nobody reads.
Square proposes, now and then, the image that it has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MARKING = 0x6B6170  # any seed: which images are equal is looked up by marks, and then compared


def equal_rows(points: Tensor, others: Tensor) -> Tensor:
    """Return which rows, (batch,) bool, of two batches of one shape are equal."""
    return (points == others).flatten(1).all(1)


def marks(images: Tensor) -> Tensor:
    """Return a number for each image, (batch,) int64: equal for equal bits, and hardly ever for others."""
    bits = images.detach().contiguous().flatten(1).view(torch.int32).long()
    generator = torch.Generator().manual_seed(MARKING)
    factors = torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator)
    return (bits * factors.to(bits.device)).sum(1)


def places_of(images: Tensor, others: Tensor, also: Tensor | None = None) -> Tensor:
    """Return for each image its place among others, (images,), -1 where there is none; of equal ones, in order.

    Args:
        also: (images, others) bool, which places are allowed.
    """
    same = marks(images)[:, None] == marks(others)[None]
    pairs = (same if also is None else same & also).nonzero().tolist()
    places, last = [-1] * len(images), -1
    for row, place in pairs:
        if places[row] < 0 and place > last:
            places[row] = last = place
    found = torch.tensor(places, device=images.device)
    really = equal_rows(images, others[found]) & (found >= 0)
    return found.where(really, -1)


class Told(torch.autograd.Function):
    """Logits whose gradient is known for some rows of the images, (batch,) bool, and not worked out.

    It is the gradient along `direction`, (batch, classes), the gradient of the logits that is then asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, images: Tensor, gradient: Tensor, known: Tensor, direction: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(gradient, known)
        ctx.direction = direction
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        gradient, known = ctx.saved_tensors
        if ctx.direction is not None:
            assert torch.equal(gradients[0][known], ctx.direction[known]), "a gradient along another direction"
        of_logits = gradients[0] if ctx.needs_input_grad[0] else None
        return of_logits, torch.where(known.view(-1, 1, 1, 1), gradient, 0), None, None, None
