"""Steps of a training as CUDA graphs: recorded once for each kind of step, then started by one launch.

What a step reads from outside is copied to where its recording reads it; what it changes (weights, statistics,
optimizer, loss scale, moving average, sums of the loss, generators) it changes in place. The learning rate is a
tensor that the engine fills. So a recorded step computes what a step that is launched kernel by kernel computes.

A kind is taken as ever before it is recorded: that creates what later steps find (momentum, streams of noise, the
choice of algorithms, code that is compiled), and DDP asks its own events for times in its first ten steps, which no
recording can hold. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kapdist.errors import InputError
from kapdist.train.adversarial import Part

WARM_UP_STEPS = 11

Compute = Callable[[Sequence[Part]], Tensor | None]
"""Forward, backward and update of the weights from the parts of a batch; to the norm of the gradient, or None."""


class Recorded(NamedTuple):
    """A step, and the norm of its gradient, which the next one writes over."""

    graph: torch.cuda.CUDAGraph
    grad_norm: Tensor | None


class Graphs:
    """Records steps and replays them, all on the current stream, which must not be the default one.

    All graphs share their memory: one is replayed after the other, and nothing but the norm is read from it.
    """

    def __init__(self, mixes: bool) -> None:
        self.mixes = mixes
        self.pool = torch.cuda.graph_pool_handle()
        self.recorded: dict[Hashable, Recorded] = {}
        self.inputs: dict[Hashable, list[Part]] = {}
        self.met: set[Hashable] = set()
        self.num_launched = 0

    def take(self, kind: Hashable, parts: Sequence[Part], compute: Compute) -> Tensor | None:
        """Take a step; `kind` says what tells it from others of the same shapes.

        Raises:
            InputError: the step does what no graph can hold.
        """
        shapes = tuple(part.images.shape for part in parts)
        if (kind, shapes) not in self.recorded:
            if self.num_launched < WARM_UP_STEPS or (kind, shapes) not in self.met:
                self.met.add((kind, shapes))
                self.num_launched += 1
                return compute(parts)
            if shapes not in self.inputs:
                self.inputs[shapes] = [self.place_for(part) for part in parts]
            self.recorded[kind, shapes] = self.record(self.inputs[shapes], compute)
        for place, part in zip(self.inputs[shapes], parts, strict=True):
            fill(place, part)
        step = self.recorded[kind, shapes]
        step.graph.replay()
        return step.grad_norm

    def place_for(self, part: Part) -> Part:
        share = torch.ones(2, device=part.images.device) if self.mixes else 1.0
        start = None if part.adversarial is None else torch.empty_like(part.adversarial)
        return Part(torch.empty_like(part.images), torch.empty_like(part.labels), share, [], start)

    def record(self, parts: Sequence[Part], compute: Compute) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load, save and watch go on: theirs is not what is recorded.
            with torch.cuda.graph(graph, self.pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
                grad_norm = compute(parts)
        except RuntimeError as error:
            raise InputError("engine.graphs", "a step that a CUDA graph can hold", first_cause(error)) from error
        return Recorded(graph, grad_norm)

    def release(self) -> None:
        """Let go of all graphs: a group of ranks cannot be left while one holds its messages."""
        self.recorded.clear()
        self.inputs.clear()


def fill(place: Part, part: Part) -> None:
    """Copy a part to where recorded steps read it, on the device."""
    place.images.copy_(part.images)
    place.labels.copy_(part.labels)
    if place.adversarial is not None and part.adversarial is not None:
        place.adversarial.copy_(part.adversarial)
    if isinstance(place.share, Tensor):
        place.share[0].fill_(part.share)
        place.share[1].fill_(1 - part.share)


def first_cause(error: BaseException) -> str:
    """Return the first line of the error that came before all others."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
