"""What the model of a config weighs, read off the model itself: built without storage, on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kapdist import kap
from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.forecast.training import Footprint
from kapdist.kap.noise import layers_with_noise
from kapdist.models.build import build_model
from kapdist.models.factory import find_factory


def footprint(config: Config) -> Footprint:
    """Build the model of a config without its storage and weigh it.

    Raises:
        InputError: the sections ask for what the architecture cannot be.
    """
    model = built_light(config)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return Footprint(
        num_parameters=sum(p.numel() for p in parameters),
        num_buffers=sum(b.numel() for b in buffers),
        parameter_bytes=weigh(parameters),
        buffer_bytes=weigh(buffers),
        saved_buffer_bytes=weigh(model.state_dict().values()) - weigh(parameters),
        generator_bytes=generators(model),
    )


def built_light(config: Config) -> nn.Module:
    """Build the model on the meta device; a network by other people that cannot stand that has its storage."""
    if config.model.factory is not None:
        find_factory(config.model.factory)  # what its module makes is not for the meta device
    try:
        with torch.device("meta"):
            return build_model(config.model, config.kap)
    except InputError:
        if config.model.factory is None:
            raise
        return build_model(config.model, config.kap)


def weigh(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def generators(model: nn.Module) -> int:
    """Return the bytes of what a rank on a CPU saves of its own: torch's stream, the noise's seeds and streams."""
    noisy = layers_with_noise(model)
    seeds = list(kap.noise_state(model).values())  # its streams, one for each layer, begin with the first draw
    return weigh([*seeds, torch.get_rng_state()]) + len(noisy) * weigh(seeds[:1])
