"""A network's passes as CUDA graphs: one launch for a whole pass forward or backward, whatever its layers.

A graph has a fixed shape, so a batch is padded to the next of a few sizes; rows do not look at each other in a
network that may be attacked so (evaluation mode, no noise). All graphs share their memory, as only one pass forward
at a time is waiting for its way back; one that is overtaken by another is passed forward again first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kapdist.errors import first_line

log = logging.getLogger(__name__)

WARM_UP = 3  # passes before a capture: what libraries set up on first use cannot be captured
STEPS = 4  # sizes of a graph to a doubling


class Graphed:
    """A network whose passes are replayed; logits of the same images are the same with and without a gradient.

    Args:
        network: frozen, in evaluation mode, without randomness, on a GPU; images to logits.
        largest: rows of the largest batch that is captured; larger ones pass as they are.
        rounding: the block that passes are captured in, which says how they round.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        largest: int,
        rounding: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.network, self.sizes, self.rounding = network, sizes_up_to(largest), rounding
        self.captured: dict[tuple[int, ...], Captured] = {}
        self.waiting = 0
        """Which pass forward is in the graphs' memory, by number."""

    def __call__(self, images: Tensor) -> Tensor:
        size = next((size for size in self.sizes if size >= len(images)), None)
        if size is None or not len(images):
            return self.network(images)
        captured = self.captured_of((size, *images.shape[1:]), images)
        if captured is None:
            return self.network(images)
        if images.requires_grad and torch.is_grad_enabled():
            replayed: Tensor = _Replayed.apply(images, captured)
            return replayed
        return captured.forward(images)

    def captured_of(self, shape: tuple[int, ...], images: Tensor) -> Captured | None:
        """Return the graphs of a shape; None where a pass cannot be captured, and from then on."""
        if shape not in self.captured:
            try:
                with self.rounding():
                    self.captured[shape] = Captured(self, images.detach().new_zeros(shape))
            except RuntimeError as error:  # CUDA's own, of all that a capture may not do
                log.warning("passes are launched layer by layer, not as graphs: %s", first_line(error))
                self.sizes = []
                return None
        return self.captured[shape]


class Captured:
    """The pass of one shape, forward and back; `images` is where its rows are read."""

    to_logits: torch.cuda.CUDAGraph
    to_gradient: torch.cuda.CUDAGraph

    def __init__(self, owner: Graphed, images: Tensor) -> None:
        self.owner, self.images = owner, images.requires_grad_()
        pool = next((other.to_logits.pool() for other in owner.captured.values()), None)
        self.warm_up()
        self.to_logits, self.to_gradient = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.enable_grad(), torch.cuda.graph(self.to_logits, pool=pool, capture_error_mode="thread_local"):
            logits = owner.network(self.images)
        self.of_logits = torch.zeros_like(logits)
        pool = self.to_logits.pool()
        with torch.cuda.graph(self.to_gradient, pool=pool, capture_error_mode="thread_local"):
            (self.gradient,) = torch.autograd.grad(logits, self.images, self.of_logits)
        self.logits, self.images = logits.detach(), self.images.detach()

    def warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.enable_grad():
            for _ in range(WARM_UP):
                logits = self.owner.network(self.images)
                torch.autograd.grad(logits, self.images, torch.zeros_like(logits))
        torch.cuda.current_stream().wait_stream(stream)

    def forward(self, images: Tensor) -> Tensor:
        self.owner.waiting += 1
        self.images[: len(images)].copy_(images)
        self.to_logits.replay()
        return self.logits[: len(images)].clone()

    def backward(self, gradient: Tensor) -> Tensor:
        self.of_logits.zero_()
        self.of_logits[: len(gradient)].copy_(gradient)
        self.to_gradient.replay()
        self.owner.waiting += 1  # what was kept for the way back is gone
        return self.gradient[: len(gradient)].clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, captured: Captured) -> Tensor:
        logits = captured.forward(images)
        ctx.save_for_backward(images)
        ctx.captured, ctx.number = captured, captured.owner.waiting
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if ctx.number != ctx.captured.owner.waiting:
            ctx.captured.forward(ctx.saved_tensors[0])
        return ctx.captured.backward(gradients[0]), None


def sizes_up_to(largest: int) -> list[int]:
    """Return the sizes of batches that are captured, ascending: the largest and `STEPS` to every halving of it."""
    sizes, top = {1, largest}, largest
    while top > 1:
        sizes |= {-(-top * (STEPS + step) // (2 * STEPS)) for step in range(STEPS)}
        top = -(-top // 2)
    return sorted(sizes)
