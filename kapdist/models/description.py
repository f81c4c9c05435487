"""What weights were made for: the average of their kernels and the normalisation, which no tensor of them tells.

A file's tensors are W, not A W: in a model that averages otherwise, or not at all, they fit and give other logits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from kapdist.errors import InputError
from kapdist.kap import KAPConv2d
from kapdist.models.ensemble import Ensemble, networks

log = logging.getLogger(__name__)

METADATA = "kapdist"
POOL = "kap.pool_size"
NOISE = "kap.noise_std"
NORM_FIRST = "kap.norm_first"
NORMALISATION = ("model.mean", "model.std")
# How the robustness library's attacked models end the names of theirs.
NORMALISERS = {"normalizer.new_mean": "model.mean", "normalizer.new_std": "model.std"}
MEAN = "model.members_mean"


def describe_weights(model: nn.Module) -> dict[str, str]:
    """Return the metadata of a safetensors file with the model's weights: `describe` as JSON under one key.

    safetensors writes several keys in an order of chance, and equal weights have to be equal files.
    """
    return {METADATA: json.dumps(describe(model))}


def read_description(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what `describe` said when the file was written; nothing where others wrote it."""
    try:
        said = json.loads(metadata.get(METADATA, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def describe(model: nn.Module) -> dict[str, str]:
    """Return averages, noise, normalisation and an ensemble's mean, under the config's keys where it has them.

    One value where all convolutions agree, else a JSON object from their names to their values.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    averages = {name: conv for name, conv in convs.items() if isinstance(conv, KAPConv2d)}
    pooled = {name: conv for name, conv in averages.items() if (conv.pool_size, conv.pool_stride) != (1, 1)}
    said = {
        POOL: together(convs, lambda conv: conv.pool_size if isinstance(conv, KAPConv2d) else 1),
        "kap.layout": together(pooled, lambda conv: conv.layout),
        "kap.pool_stride": together(pooled, lambda conv: conv.pool_stride),
        NORM_FIRST: together(pooled, lambda conv: conv.inner_norm is not None),
        NOISE: together(convs, lambda conv: float(conv.noise_std) if isinstance(conv, KAPConv2d) else 0.0),
    }
    for key in NORMALISATION:
        value = getattr(networks(model)[0], key.removeprefix("model."), None)
        if isinstance(value, Tensor) and not value.is_meta:
            said[key] = listed(value)
    return said | ({MEAN: model.members_mean} if isinstance(model, Ensemble) else {})


def describe_normaliser(beside: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what tensors that lie beside a network's say of the normalisation that it was trained with."""
    ends = NORMALISERS.items()
    return {name: listed(value) for key, value in beside.items() for end, name in ends if key.endswith(end)}


def listed(value: Tensor) -> str:
    return json.dumps(value.detach().flatten().tolist())


def together(convs: Mapping[str, nn.Module], value: Callable[[nn.Module], object]) -> str:
    values = {name: value(conv) for name, conv in convs.items()}
    distinct = list(dict.fromkeys(values.values()))
    if len(distinct) > 1:
        return json.dumps(values)
    return str(distinct[0]) if distinct else ""


def check_description(model: nn.Module, said: Mapping[str, str], path: Path, start: bool) -> None:
    """Raise InputError for the first key by which a file's weights give other logits in this model.

    Other noise gives the same logits with the noise off: that is logged. With `start` so is another
    normalisation, and an average that plain weights are to be trained with. Noise that came before the average, as
    older versions had it, is refused, or logged with `start`.
    """
    if not said:  # torchvision's, timm's, an older run's
        return
    if NORM_FIRST not in said and said.get(POOL, "1") != "1" and said.get(NOISE, "0.0") != "0.0":
        check_older(said, path, start)
    own = describe(model if MEAN in said else networks(model)[0])  # one network's, of which an ensemble starts
    plain = said.get(POOL) == "1" and not said.get("kap.layout")
    for key, value in own.items():
        if said.get(key, value) == value:
            continue
        expected, found = f"{key} {value or 'none'} (the model's)", f"weights made for {said[key] or 'none'}"
        if key == NOISE or (start and (plain or key in NORMALISATION)):
            log.warning("%s: expected %s, found %s", path, expected, found)
            continue
        hint = "; fold them first (kapdist.kap.fold)" if own[POOL] == "1" else ""
        raise InputError(path, expected, found + hint)


def check_older(said: Mapping[str, str], path: Path, start: bool) -> None:
    """Raise InputError for weights that learned under noise before the average; with `start` that is logged."""
    expected = f"{NOISE} of noise that comes after the average, the only form by now"
    found = f"weights made with {said[NOISE]} before it (by an older version)"
    if not start:
        raise InputError(path, expected, found)
    log.warning("%s: expected %s, found %s", path, expected, found)
