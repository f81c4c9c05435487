"""From the config's sections to a model."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from kapdist.errors import InputError
from kapdist.models.factory import call_factory, check_state
from kapdist.models.images import IMAGENET_MEAN, IMAGENET_STD
from kapdist.models.imported import place_of
from kapdist.models.networks import MODELS
from kapdist.models.normalised import as_stated, as_they_are, normalised
from kapdist.models.zoo import stated, states_another, with_classes
from kapdist.rng import derive_seed

if TYPE_CHECKING:  # the models run where there is no pydantic
    from kapdist.config import KapConfig, ModelConfig

log = logging.getLogger(__name__)


def build_model(model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Build the network or the ensemble that the two sections describe, with its initial weights.

    `model.weights` is left to the caller: training starts from it, an attack never reads it. Each member of an
    ensemble begins from a seed of its own, that of torch's generator and its number.

    Raises:
        InputError: the sections ask for what the architecture cannot be (more kernels averaged than there are, a
            norm before an average where none follows the convolution), or for a factory that returns no network.
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

    network = own_network(model) if model.factory is None else outside_network(model, model.factory)
    if kap.pool_size > 1 or kap.noise_std:
        network = averaged(network, model, kap)
    try:
        network = with_dropout(network, model.dropout_kind, model.dropout_draws)
    except ValueError as error:
        raise InputError("model.dropout_draws", "a model that has dropout (model.dropout)", str(error)) from None
    share_noise_source(network)
    return network


def own_network(model: ModelConfig) -> nn.Module:
    try:
        network: nn.Module = MODELS[model.name](**model.own_arguments())
    except ValueError as error:
        raise InputError("model", f"fields that {model.name} can be built from", str(error)) from None
    return network


def outside_network(model: ModelConfig, factory: str) -> nn.Module:
    said = stated(factory)
    if said and (tuple(model.mean), tuple(model.std)) != (IMAGENET_MEAN, IMAGENET_STD):  # lists, where JSON says it
        found = f"mean {model.mean} and std {model.std}"
        raise InputError("model.mean", f"none beside {factory}, whose own configuration states it", found)
    network = call_factory(factory, with_classes(factory, model.arguments, model.num_classes))
    if not torch.empty(0).is_meta:  # where a forecast weighs it
        check_state(network, place_of(factory))
    if not model.normalise:
        return as_they_are(network)
    if said:
        return as_stated(network, factory, said.mean, said.std)
    if differs := states_another(network, model.mean, model.std):
        log.warning("%s states %s, and model.mean and model.std are applied", place_of(factory), differs)
    return normalised(network, factory, model.mean, model.std)


def averaged(network: nn.Module, model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Put the averages and the noise into a network; what kapify has to say is logged."""
    from kapdist.kap import NoNormError, kapify
    from kapdist.kap.where import named_like, without_a_match

    if kap.where and (unmatched := without_a_match(network, kap.where)):
        convs = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        there = f"{', '.join(convs[:3])}{f' and {len(convs) - 3} more' if len(convs) > 3 else ''}" or "none"
        raise InputError("kap.where", f"patterns that have names of its convolutions ({there})", repr(unmatched[0]))
    where = named_like(kap.where) if kap.where else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            network = kapify(
                network,
                pool_size=kap.pool_size,
                layout=kap.layout,
                noise_std=kap.noise_std,
                norm_first=kap.norm_first,
                where=where,
            )
        except NoNormError as error:
            without = str(error).rpartition(": ")[2].split(", ")
            found = f"none behind {without[0]}" + (f" and {len(without) - 1} more" if len(without) > 1 else "")
            expected = f"false for {model.in_words()}, or a model with a batch norm behind each convolution"
            raise InputError("kap.norm_first", expected, found) from None
        except ValueError as error:
            named = str(error).removeprefix("leave these convolutions out with `where`: ")
            first, *others = named.split(";")  # it names every convolution in turn
            more = f" (and {len(others)} more)" if others else ""
            raise InputError("kap", f"an average that {model.in_words()}, allows", first + more) from None
    for warning in caught:
        log.warning("%s", warning.message)
    return network
