"""Activation noise: where it comes from, when it is drawn, and its state.

The layers of one model share one NoiseSource, a generator apart from torch's global one. Its modes:

    fresh  new noise at every call, in training and in evaluation (the default, as in the paper)
    fixed  one noise image per layer, the same for every call and every image of a batch: a function of
           (seed, layer, channels, height, width) alone, whatever the device, the batch or the memory format
    off    none

Unseeded, the stream is that of seed 0. Ranks of one job must be given seeds of their own (`seed_noise`), or
they draw the same noise. Saved states hold one stream for each device type.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MODES = ("fresh", "fixed", "off")


class NoiseSource:
    """Standard normal draws for the layers of one model; copies and pickles continue the same stream."""

    def __init__(self, seed: int = 0) -> None:
        self.mode = "fresh"
        self.seed_all(seed)

    def seed_all(self, seed: int) -> None:
        """Starts the streams of every device and the fixed images anew."""
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        self._saved_states: dict[str, Tensor] = {}  # of streams whose device has not been used yet
        self._fixed: dict[int, Tensor] = {}

    def draw(self, like: Tensor, channels: int, layer: int) -> Tensor:
        """Noise for (batch, ?, height, width) as (batch, channels, height, width), or batch 1 when fixed."""
        if self.mode == "fixed":
            return self._fixed_image((channels, *like.shape[2:]), layer).to(like, copy=True)
        return self._fresh(like, channels)

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
        self.mode = state["mode"]
        self.load_states(state["seed"], state["states"])

    def _fresh(self, like: Tensor, channels: int) -> Tensor:
        batch, _, height, width = like.shape
        channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        shape = (batch, height, width, channels) if channels_last else (batch, channels, height, width)
        # Drawn in memory order: torch fills a tensor that is not contiguous one by one, 5 times as slowly.
        normal = torch.empty(shape, dtype=like.dtype, device=like.device)
        normal.normal_(generator=self._generator(like.device))
        return normal.permute(0, 3, 1, 2) if channels_last else normal

    def _fixed_image(self, shape: tuple[int, ...], layer: int) -> Tensor:
        if layer not in self._fixed or self._fixed[layer].shape[1:] != shape:
            # float32 on the CPU, so that every device and precision sees the same image.
            generator = torch.Generator().manual_seed(_mix(self.seed, layer))
            self._fixed[layer] = torch.empty(1, *shape, dtype=torch.float32).normal_(generator=generator)
        return self._fixed[layer]

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
