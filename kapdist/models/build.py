"""From the config's sections to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kapdist.errors import InputError

if TYPE_CHECKING:  # the models run where there is no pydantic
    from kapdist.config import KapConfig, ModelConfig


def build_model(model: ModelConfig, kap: KapConfig) -> nn.Module:
    """Build the network that the two sections describe, with its initial weights.

    `model.weights` is left to the caller: training starts from it, an attack never reads it.

    Raises:
        InputError: the sections ask for what the architecture cannot be (more kernels averaged than there are, a
            norm before an average where none follows the convolution).
    """
    from kapdist.kap import NoNormError, kapify
    from kapdist.models import MODELS

    fields = model.model_dump(exclude={"name", "weights"} | model.of_others())
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
