"""The noise of a model: where it comes from, when it is drawn, and its state.

Activation noise, and whatever else a layer draws at test time too (dropout, the member of an ensemble).

The layers of one model share one NoiseSource, with a stream for each layer, apart from torch's global one. Modes:

    fresh  new noise at every call, in training and in evaluation (the default, as in the paper)
    fixed  one noise image per layer, the same for every call and every image of a batch: a function of
           (seed, layer, channels, height, width) alone, whatever the device, the batch or the memory format
    off    none

Unseeded, the streams are those of seed 0. Ranks of one job must be given seeds of their own (`seed_noise`), or
they draw the same noise. Saved states hold a stream for each layer and device type.

Refused with a RuntimeError: fresh noise in a forward pass within a backward pass, where gradient checkpointing
would draw other noise than before (seed it there, as `noise(model, "fresh", seed)` around the checkpointed part
does, and it is drawn), and noise in a graph that is exported or traced to run elsewhere, where no source is.
"""

import hashlib
import itertools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.kap.streams import Streams, mix

MODES = ("fresh", "fixed", "off")

_handles = itertools.count()
_live_sources: "weakref.WeakValueDictionary[int, NoiseSource]" = weakref.WeakValueDictionary()


class NoiseSource:
    """Standard normal draws for the layers of one model; copies and pickles continue the same streams."""

    def __init__(self, seed: int = 0) -> None:
        self._register()
        self.mode = "fresh"
        self.streams = Streams(seed)

    def _register(self) -> None:
        self.handle = next(_handles)
        _live_sources[self.handle] = self

    def load(self, seed: int, states: dict[str, Tensor]) -> None:
        self.streams = Streams(seed)
        self.streams.load_states(states)

    def __getstate__(self) -> dict[str, Any]:
        # for deepcopy and pickle: a torch.Generator allows neither everywhere
        return {"mode": self.mode, "seed": self.streams.seed, "states": self.streams.states()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._register()
        self.mode = state["mode"]
        self.load(state["seed"], state["states"])


def add_noise(source: NoiseSource, z: Tensor, std: float, layer: int) -> Tensor:
    """z + std * noise, z's gradient for its own; z itself is written to where nothing else is made of it.

    For z that no operation's derivative needs, such as what a convolution or an average has just given: noise is
    added in place, behind autograd's back, which has nothing to keep for it.

    Shapes: (batch, channels, height, width), as z.
    Raises: RuntimeError while the model is exported or traced.
    """
    _check_runs_here()
    if source.mode == "fixed":
        return z.add(draw_noise(source, z, layer), alpha=std)
    lines = _in_memory_order(z)
    if torch.compiler.is_compiling():
        noisy: Tensor = torch.ops.kapdist.add_noise(lines, std, source.handle, layer)
        return noisy if lines is z else noisy.permute(0, 3, 1, 2)
    if not lines.is_contiguous() or not _has_numbers(z):
        return z.add(draw_noise(source, z, layer), alpha=std)
    flat = lines.detach().view(-1)
    source.streams.add_fresh(flat, flat, std, layer)
    return z


def _has_numbers(z: Tensor) -> bool:
    """Whether it is a tensor itself: on the meta device, or for torch.func and fake tensors, it stands for one.

    Operators know what to do for those; a stream that had drawn for one would be of no use for numbers any more.
    """
    return type(z) is Tensor and not z.is_meta and not torch._C._functorch.is_functorch_wrapped_tensor(z)


def draw_noise(source: NoiseSource, z: Tensor, layer: int) -> Tensor:
    """Standard normal noise for z, without a gradient, in z's memory format.

    Shapes: (batch, channels, height, width), as z; batch is 1 in mode "fixed".
    Raises: RuntimeError while the model is exported or traced.
    """
    _check_runs_here()
    z = z.detach()
    if source.mode == "fixed":
        fixed: Tensor = torch.ops.kapdist.fixed_noise(z, (1, *z.shape[1:]), source.handle, layer)
        return fixed
    lines = _in_memory_order(z)
    drawn: Tensor = torch.ops.kapdist.fresh_noise(z, lines.shape, source.handle, layer)
    return drawn if lines is z else drawn.permute(0, 3, 1, 2)


def _check_runs_here() -> None:
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise RuntimeError(
            "activation noise cannot be exported, its source is an object of this process: export within "
            "kapdist.kap.noise(model, 'off'), or what kapdist.kap.fold returns"
        )


def _in_memory_order(z: Tensor) -> Tensor:
    """z, or (batch, height, width, channels) for what lies in channels_last: places are counted in memory."""
    last = z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous()
    return z.permute(0, 2, 3, 1) if last else z


# torch.compile cannot follow a stream, and breaking the graph at each layer would leave it nothing to compile. As
# operators the draws stay opaque to it; the tag keeps it from merging or repeating them. Operators take no Python
# objects, so the source travels as its handle.
_SEEDED = (torch.Tag.nondeterministic_seeded,)
_SCHEMA = "(Tensor like, SymInt[] shape, int source, int layer) -> Tensor"
torch.library.define("kapdist::fresh_noise", _SCHEMA, tags=_SEEDED)
torch.library.define("kapdist::fixed_noise", _SCHEMA, tags=_SEEDED)
torch.library.define("kapdist::add_noise", "(Tensor z, float std, int source, int layer) -> Tensor", tags=_SEEDED)


@torch.library.impl("kapdist::fresh_noise", "default")
def _fresh_noise(like: Tensor, shape: Sequence[int], source: int, layer: int) -> Tensor:
    return _live_sources[source].streams.fresh(tuple(shape), layer, like)


@torch.library.impl("kapdist::fixed_noise", "default")
def _fixed_noise(like: Tensor, shape: Sequence[int], source: int, layer: int) -> Tensor:
    return _live_sources[source].streams.fixed(tuple(shape), layer, like)


@torch.library.impl("kapdist::add_noise", "default")
def _add_noise(z: Tensor, std: float, source: int, layer: int) -> Tensor:
    noisy = torch.empty_like(z, memory_format=torch.contiguous_format)
    _live_sources[source].streams.add_fresh(z.detach().contiguous().view(-1), noisy.view(-1), std, layer)
    return noisy


@torch.library.register_fake("kapdist::fresh_noise")
@torch.library.register_fake("kapdist::fixed_noise")
def _noise_meta(like: Tensor, shape: Sequence[int], source: int, layer: int) -> Tensor:
    return like.new_empty(shape)


@torch.library.register_fake("kapdist::add_noise")
def _add_noise_meta(z: Tensor, std: float, source: int, layer: int) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _pass_through(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return grad, None, None, None


torch.library.register_autograd("kapdist::add_noise", _pass_through)


class NoisyLayer(nn.Module):
    """A layer that draws from its model's NoiseSource; noise_layer tells it from the other layers."""

    noise_source: NoiseSource
    noise_layer: int

    @property
    def has_noise(self) -> bool:
        """Whether it draws at all, in another mode than off."""
        raise NotImplementedError

    def silence(self) -> None:
        """From now on it draws nothing, whatever the mode."""
        raise NotImplementedError

    def is_noisy(self) -> bool:
        """Whether it draws in this pass."""
        return self.has_noise and self.noise_source.mode != "off"


@contextmanager
def noise(model: nn.Module, mode: str, seed: int | None = None) -> Iterator[None]:
    """Sets the noise mode of every noisy layer in the model for the length of a `with` block.

    With a seed the block draws from that seed, and the streams continue afterwards where they stood before.
    Raises: ValueError for an unknown mode, and a seed that is no whole number of 64 bits.
    """
    if mode not in MODES:
        raise ValueError(f"the noise mode must be one of {', '.join(MODES)}, found {mode!r}")
    before = [(source, source.mode, source.streams) for source in _sources(model)]
    if seed is not None:
        seed_noise(model, seed)
    try:
        for source, _, _ in before:
            source.mode = mode
        yield
    finally:
        for source, former, streams in before:
            source.mode, source.streams = former, streams


def seed_noise(model: nn.Module, seed: int) -> None:
    """Starts the model's noise anew from `seed`; give each rank another one.

    Raises: ValueError for what is no whole number of 64 bits.
    """
    for number, source in enumerate(_sources(model)):
        source.streams = Streams(seed if number == 0 else mix(seed, number))


def noise_state(model: nn.Module) -> dict[str, Tensor]:
    """What decides the model's future noise, as CPU tensors: "<source>.seed" and "<source>.<layer>.<device type>".

    A model of one kapify call has one source, number 0. The mode is not part of it.
    """
    state = {}
    for number, source in enumerate(_sources(model)):
        state[f"{number}.seed"] = torch.tensor(source.streams.seed)
        state |= {f"{number}.{place}": stream for place, stream in source.streams.states().items()}
    return state


def load_noise_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Continues the streams that `noise_state` saved.

    A state of older versions, of torch's generators, cannot be continued: the layers' streams begin anew, as a
    function of it, with a warning.

    Raises: ValueError when the model has another number of noise sources than the state.
    """
    sources = _sources(model)
    numbers = {key.split(".")[0] for key in state}
    if numbers != {str(number) for number in range(len(sources))}:
        raise ValueError(f"the noise state is of {len(numbers)} sources, the model has {len(sources)}")
    for number, source in enumerate(sources):
        streams = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{number}.")}
        seed = int(streams.pop("seed"))
        if any(value.dtype == torch.uint8 for value in streams.values()):
            warnings.warn(
                "the noise state is of torch's generators, as older versions drew: its streams begin anew",
                stacklevel=2,
            )
            digest = [hashlib.blake2b(value.cpu().numpy().tobytes()).hexdigest() for value in streams.values()]
            seed, streams = mix(seed, *digest), {}
        source.load(seed, streams)


def share_noise_source(model: nn.Module) -> None:
    """Gives all noisy layers of the model the first one's source, and each a number of its own."""
    layers = _noisy_layers(model)
    for number, layer in enumerate(layers):
        layer.noise_source, layer.noise_layer = layers[0].noise_source, number


def layers_with_noise(model: nn.Module) -> list[NoisyLayer]:
    """The layers that draw; a model without any is deterministic in every mode."""
    return [layer for layer in _noisy_layers(model) if layer.has_noise]


def _noisy_layers(model: nn.Module) -> list[NoisyLayer]:
    return [module for module in model.modules() if isinstance(module, NoisyLayer)]


def _sources(model: nn.Module) -> list[NoiseSource]:
    return list(dict.fromkeys(layer.noise_source for layer in _noisy_layers(model)))
