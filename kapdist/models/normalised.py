"""The normalisation of images in [0, 1], put inside of a network that others wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.errors import InputError
from kapdist.models.imported import place_of


def normalised(network: nn.Module, factory: str, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Have a network normalise its images inside, in place; returns the network.

    Its modules, parameters and the state_dict's keys stay: mean and std are buffers that no state_dict has.

    Raises:
        InputError: it has a mean or a std already.
    """
    for name, values in (("mean", mean), ("std", std)):
        if hasattr(network, name):
            expected = f"a network without a {name} of its own (or model.normalise=false, if it normalises inside)"
            raise InputError(place_of(factory), expected, "one")
        network.register_buffer(name, per_channel(values), persistent=False)
    network.register_forward_pre_hook(normalise)  # not a forward around its own, which it may have set by itself
    return network


def as_they_are(network: nn.Module) -> nn.Module:
    """Have a network say that it takes images as they are, unless it has a mean and a std of its own."""
    for name, value in (("mean", 0.0), ("std", 1.0)):
        if not hasattr(network, name):
            network.register_buffer(name, per_channel([value] * 3), persistent=False)
    return network


def as_stated(network: nn.Module, factory: str, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Have a network normalise as its own configuration says; one that does already says 0 and 1.

    Raises:
        InputError: as `normalised`.
    """
    if not any(mean) and all(value == 1 for value in std):
        return as_they_are(network)
    return normalised(network, factory, mean, std)


def per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def normalise(network: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *rest = inputs
    return ((images - network.mean) / network.std, *rest)
