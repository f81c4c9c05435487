"""Activation noise: where it comes from, when it is drawn, and its state.

The layers of one model share one NoiseSource, a generator apart from torch's global one. Its modes:

    fresh  new noise at every call, in training and in evaluation (the default, as in the paper)
    fixed  one noise image per layer, the same for every call and every image of a batch: a function of
           (seed, layer, channels, height, width) alone, whatever the device, the batch or the memory format
    off    none

Unseeded, the stream is that of seed 0. Ranks of one job must be given seeds of their own (`seed_noise`), or
they draw the same noise. Saved states hold one stream for each device type. Activation checkpointing would
draw other noise when it recomputes a layer: it does not go together with fresh noise.
"""

import hashlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MODES = ("fresh", "fixed", "off")

_handles = itertools.count()
_live_sources: "weakref.WeakValueDictionary[int, NoiseSource]" = weakref.WeakValueDictionary()


class NoiseSource:
    """Standard normal draws for the layers of one model; copies and pickles continue the same stream."""

    def __init__(self, seed: int = 0) -> None:
        self._register()
        self.mode = "fresh"
        self.seed_all(seed)

    def _register(self) -> None:
        self.handle = next(_handles)
        _live_sources[self.handle] = self

    def seed_all(self, seed: int) -> None:
        """Starts the streams of every device and the fixed images anew."""
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        self._saved_states: dict[str, Tensor] = {}  # of streams whose device has not been used yet
        self._fixed: dict[int, Tensor] = {}

    def fresh(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """New noise of this shape, of like's dtype and device."""
        normal = torch.empty(shape, dtype=like.dtype, device=like.device)
        return normal.normal_(generator=self._generator(like.device))

    def fixed(self, shape: tuple[int, ...], layer: int, like: Tensor) -> Tensor:
        """The layer's own noise of this shape, of like's dtype and device."""
        image = self._fixed.get(layer)
        if image is None or image.shape != shape:
            # float32 on the CPU, so that every device and precision sees the same noise.
            generator = torch.Generator().manual_seed(_mix(self.seed, layer))
            image = torch.empty(shape, dtype=torch.float32).normal_(generator=generator)
        self._fixed[layer] = image.to(like.device)
        return self._fixed[layer].to(like.dtype, copy=True)

    def states(self) -> dict[str, Tensor]:
        """The state of each device type's stream."""
        return self._saved_states | {kind: g.get_state() for kind, g in self._generators.items()}

    def load_states(self, seed: int, states: dict[str, Tensor]) -> None:
        self.seed_all(seed)
        self._saved_states = {kind: state.cpu().clone() for kind, state in states.items()}

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # deepcopy and pickle: a torch.Generator allows neither everywhere
        return {"mode": self.mode, "seed": self.seed, "states": self.states()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._register()
        self.mode = state["mode"]
        self.load_states(state["seed"], state["states"])

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device.type)
        if generator is None or generator.device.index not in (None, device.index):
            if generator is not None:  # the model moved to another device of this type: the stream moves along
                self._saved_states[device.type] = generator.get_state()
            generator = torch.Generator(device=device).manual_seed(self.seed)
            if device.type in self._saved_states:
                generator.set_state(self._saved_states.pop(device.type))
            self._generators[device.type] = generator
        return generator


def draw_noise(source: NoiseSource, z: Tensor, channels: int, layer: int) -> Tensor:
    """Standard normal noise for z, without a gradient, in z's memory format.

    Shapes: z (batch, any, height, width) to (batch, channels, height, width), or batch 1 in mode "fixed".
    """
    batch, _, height, width = z.shape
    z = z.detach()
    if source.mode == "fixed":
        fixed: Tensor = torch.ops.kapdist.fixed_noise(z, (1, channels, height, width), source.handle, layer)
        return fixed
    # Drawn in memory order: torch fills a tensor that is not contiguous one by one, 5 times as slowly.
    if z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous():
        shape = (batch, height, width, channels)
        return _draw_fresh(source, z, shape).permute(0, 3, 1, 2)
    return _draw_fresh(source, z, (batch, channels, height, width))


def _draw_fresh(source: NoiseSource, z: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not torch.compiler.is_compiling():
        return source.fresh(shape, z)  # an operator's way through the dispatcher costs time at every layer
    drawn: Tensor = torch.ops.kapdist.fresh_noise(z, shape, source.handle)
    return drawn


# torch.compile cannot follow a generator, and breaking the graph at each layer would leave it nothing to
# compile. As operators the draws stay opaque to it; the tag keeps it from merging or repeating them.
# Operators take no Python objects, so the source travels as its handle.
_SEEDED = (torch.Tag.nondeterministic_seeded,)
torch.library.define("kapdist::fresh_noise", "(Tensor like, SymInt[] shape, int source) -> Tensor", tags=_SEEDED)
torch.library.define(
    "kapdist::fixed_noise", "(Tensor like, SymInt[] shape, int source, int layer) -> Tensor", tags=_SEEDED
)


@torch.library.impl("kapdist::fresh_noise", "default")
def _fresh_noise(like: Tensor, shape: Sequence[int], source: int) -> Tensor:
    return _live_sources[source].fresh(tuple(shape), like)


@torch.library.impl("kapdist::fixed_noise", "default")
def _fixed_noise(like: Tensor, shape: Sequence[int], source: int, layer: int) -> Tensor:
    return _live_sources[source].fixed(tuple(shape), layer, like)


@torch.library.register_fake("kapdist::fresh_noise")
@torch.library.register_fake("kapdist::fixed_noise")
def _noise_meta(like: Tensor, shape: Sequence[int], source: int, layer: int = 0) -> Tensor:
    return like.new_empty(shape)


class NoisyLayer(nn.Module):
    """A layer that draws from its model's NoiseSource; noise_layer tells it from the other layers."""

    noise_source: NoiseSource
    noise_layer: int


@contextmanager
def noise(model: nn.Module, mode: str, seed: int | None = None) -> Iterator[None]:
    """Sets the noise mode of every KAPConv2d in the model for the length of a `with` block.

    With a seed the block draws from that seed, and the streams continue afterwards where they stood before.
    Raises: ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"the noise mode must be one of {', '.join(MODES)}, found {mode!r}")
    before = [(source, source.__getstate__()) for source in _sources(model)]
    if seed is not None:
        seed_noise(model, seed)
    try:
        for source, _ in before:
            source.mode = mode
        yield
    finally:
        for source, state in before:
            source.mode = state["mode"]
            if seed is not None:
                source.load_states(state["seed"], state["states"])


def seed_noise(model: nn.Module, seed: int) -> None:
    """Starts the model's noise anew from `seed`; give each rank another one."""
    for number, source in enumerate(_sources(model)):
        source.seed_all(seed if number == 0 else _mix(seed, number))


def noise_state(model: nn.Module) -> dict[str, Tensor]:
    """What decides the model's future noise, as CPU tensors: "<source>.seed" and "<source>.<device type>".

    A model of one kapify call has one source, number 0. The mode is not part of it.
    """
    state = {}
    for number, source in enumerate(_sources(model)):
        state[f"{number}.seed"] = torch.tensor(source.seed)
        state |= {f"{number}.{kind}": stream for kind, stream in source.states().items()}
    return state


def load_noise_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Continues the streams that `noise_state` saved.

    Raises: ValueError when the model has another number of noise sources than the state.
    """
    sources = _sources(model)
    numbers = {key.split(".")[0] for key in state}
    if numbers != {str(number) for number in range(len(sources))}:
        raise ValueError(f"the noise state is of {len(numbers)} sources, the model has {len(sources)}")
    for number, source in enumerate(sources):
        streams = {key.split(".")[1]: value for key, value in state.items() if key.startswith(f"{number}.")}
        source.load_states(int(streams.pop("seed")), streams)


def share_noise_source(model: nn.Module) -> None:
    """Gives all noisy layers of the model the first one's source, and each a number of its own."""
    layers = _noisy_layers(model)
    for number, layer in enumerate(layers):
        layer.noise_source, layer.noise_layer = layers[0].noise_source, number


def _noisy_layers(model: nn.Module) -> list[NoisyLayer]:
    return [module for module in model.modules() if isinstance(module, NoisyLayer)]


def _sources(model: nn.Module) -> list[NoiseSource]:
    return list(dict.fromkeys(layer.noise_source for layer in _noisy_layers(model)))


def _mix(seed: int, number: int) -> int:
    """A seed for each (seed, number), all bits well mixed: torch's CPU generator looks at the low half alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), "big") >> 1
