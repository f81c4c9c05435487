"""From the config's sections to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from kapdist.errors import InputError
from kapdist.rng import derive_seed

if TYPE_CHECKING:  # the models run where there is no pydantic
    from kapdist.config import KapConfig, ModelConfig


# What is made of any network, whatever its own constructor takes.
OF_EVERY_NETWORK = ("name", "members", "members_mean", "random_member", "dropout_kind", "dropout_draws")


def build_model(model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Build the network or the ensemble that the two sections describe, with its initial weights.

    `model.weights` is left to the caller: training starts from it, an attack never reads it. Each member of an
    ensemble begins from a seed of its own, that of torch's generator and its number.

    Raises:
        InputError: the sections ask for what the architecture cannot be (more kernels averaged than there are, a
            norm before an average where none follows the convolution).
    """
    from kapdist.models.ensemble import Ensemble

    if model.members == 1:
        return build_network(model, kap)
    seed = torch.initial_seed()
    members = []
    with torch.random.fork_rng(devices=[]):
        for number in range(model.members):
            torch.default_generator.manual_seed(derive_seed(seed, "member", number))
            members.append(build_network(model, kap))
    return Ensemble(members, model.members_mean, model.random_member)


def build_network(model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Build one network; of an ensemble, a member."""
    from kapdist.kap.noise import share_noise_source
    from kapdist.models.dropout import with_dropout

    network = build_averaging(model, kap)
    try:
        network = with_dropout(network, model.dropout_kind, model.dropout_draws)
    except ValueError as error:
        raise InputError("model.dropout_draws", "a model that has dropout (model.dropout)", str(error)) from None
    share_noise_source(network)
    return network


def build_averaging(model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Build the network with the average over its kernels and its activation noise."""
    from kapdist.kap import NoNormError, kapify
    from kapdist.models import MODELS

    fields = model.model_dump(exclude={"weights", *OF_EVERY_NETWORK} | model.of_others())
    try:
        network: nn.Module = MODELS[model.name](**fields)
    except ValueError as error:
        raise InputError("model", f"fields that {model.name} can be built from", str(error)) from None
    if kap.pool_size == 1 and kap.noise_std == 0:
        return network
    try:
        return kapify(
            network,
            pool_size=kap.pool_size,
            layout=kap.layout,
            noise_std=kap.noise_std,
            norm_first=kap.norm_first,
        )
    except NoNormError as error:
        expected = f"false for {model.name}, or a model with a batch norm behind each convolution"
        without = str(error).rpartition(": ")[2].split(", ")
        found = f"none behind {without[0]}" + (f" and {len(without) - 1} more" if len(without) > 1 else "")
        raise InputError("kap.norm_first", expected, found) from None
    except ValueError as error:
        named = str(error).removeprefix("leave these convolutions out with `where`: ")
        first = named.partition(";")[0]  # it names every convolution in turn
        expected = f"an average that {model.in_words()}, allows"
        raise InputError("kap", expected, first) from None
