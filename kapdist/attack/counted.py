"""The model with its images counted and with randomness of its own."""

from __future__ import annotations

import contextlib
import random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kapdist.attack.fused import fused
from kapdist.attack.own.bpda import StraightThrough
from kapdist.kap import seed_noise

States = tuple[list[Tensor], tuple[Any, ...], Any]
"""Torch's, Python's and NumPy's."""


class CountedModel(nn.Module):
    """The model as an attack sees it: images that pass forward and backward are counted, its randomness is its own.

    The library resets torch's global seed at every attack. A model that draws from the global generator would
    start over with it, so its forwards draw from streams apart: of Python's and NumPy's, too, which nobody seeds.
    Its logits become float32, which the library takes for granted (FAB fails on others); `dtype` is what they were.
    Rough passes are those of `Forms`.

    Args:
        inference: pass without a gradient in inference mode, and fused on CPUs; for networks of kapdist's own
            layers alone, as others may keep a tensor for later.
        drawless: it draws no random numbers, so that none need to be kept apart.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, seed: int, inference: bool = False, drawless: bool = False
    ) -> None:
        super().__init__()
        self.model, self.inference, self.drawless = model, inference, drawless
        self.fused = fused(model) if inference and device.type == "cpu" else None
        self.stream = RandomStream(device, seed)
        self.forwards = 0
        self.backwards = 0
        self.dtype = torch.float32

    def reseed(self, seed: int) -> None:
        """Start the model's randomness anew: the global stream that it sees, and the noise of its own."""
        self.stream.start(seed)
        seed_noise(self.model, seed)

    def forward(self, images: Tensor, rough: bool = False) -> Tensor:
        networks = self.model.passes(images) if isinstance(self.model, StraightThrough) else 1
        self.forwards += networks * len(images)
        bare = self.inference and not torch.is_grad_enabled()
        stream = contextlib.nullcontext() if self.drawless else self.stream
        with stream, torch.inference_mode() if bare else contextlib.nullcontext():
            if rough:
                logits: Tensor = self.model.rough(images)  # type: ignore[operator]
            else:
                logits = self.fused(self.model, images) if bare and self.fused else self.model(images)
            self.dtype, logits = self.dtype if rough else logits.dtype, logits.float()
        if bare:
            logits = logits.clone()  # an ordinary tensor again: Square writes into it
        if logits.requires_grad:
            logits.register_hook(self.count_backward)
        return logits

    def count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class RandomStream:
    """A place in the global random streams, torch's, Python's and NumPy's, that is left and taken up again.

    Others' models draw from any of them: torchvision's older transforms and many a random size from Python's.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.start(seed)

    def start(self, seed: int) -> None:
        torchs = [torch.Generator(kind).manual_seed(seed).get_state() for kind in self.kinds()]
        self.state: States = (
            torchs,
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(legacy=False),
        )
        self.outside = self.state

    def kinds(self) -> list[torch.device]:
        cpu = torch.device("cpu")
        return [cpu] if self.device.type == "cpu" else [cpu, self.device]

    def get(self) -> States:
        torchs = [torch.get_rng_state()]
        torchs += [] if self.device.type == "cpu" else [torch.cuda.get_rng_state(self.device)]
        return torchs, random.getstate(), np.random.get_state(legacy=False)

    def put(self, state: States) -> None:
        torchs, pythons, numpys = state
        torch.set_rng_state(torchs[0])
        if self.device.type != "cpu":
            torch.cuda.set_rng_state(torchs[1], self.device)
        random.setstate(pythons)
        np.random.set_state(numpys)

    def __enter__(self) -> None:
        self.outside = self.get()
        self.put(self.state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state = self.get()
        self.put(self.outside)
