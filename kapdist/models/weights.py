"""Weights from a file into a model: safetensors or a plain state_dict, never code."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.errors import InputError
from kapdist.models.description import check_description, describe_normaliser, describe_weights, read_description
from kapdist.models.ensemble import for_members, networks, starts_of

log = logging.getLogger(__name__)

# timm's trainer, torchvision's, Lightning, the robustness library, RobustBench; averages of weights first, as ours.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "last")
# Of DDP, torch.compile, Lightning, detectors; the robustness library's of its second name for the network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "attacker.")
INNER_NORM = "inner_norm"  # KAPConv2d's name for it
FORMATS = "weights as safetensors or a plain state_dict (torch.save)"


def load_weights(model: nn.Module, path: Path, start: bool = False, new_head: bool = False) -> None:
    """Copy the weights of a file into the model; every key must be there, with its shape, and no other.

    Norms' `num_batches_tracked` may lack, as torch lets it: older state_dicts have none. So may the norms before
    averages (kap.norm_first), all of them: they then start at identity statistics, which is logged.

    Args:
        path: safetensors, or a state_dict written by torch.save, bare or in a trainer's checkpoint (`WRAPPERS`);
            prefixes that wrappers put before the network's keys (`PREFIXES`, in any order) are dropped, and with
            them what does not have them: it is a part of the wrapper.
        start: training goes on from these weights, so plain ones may start a model that averages kernels, and those
            of one network an ensemble, all members alike. With `{member}` in the path, which stands for their
            numbers, each member starts from a file of its own.
        new_head: the last linear layer stays as it is, whatever the file has for it.

    Raises:
        InputError: no such file, not weights, a pickle that holds more than tensors, weights that do not fit
            (names the first differing key and both shapes), are not finite (names the first tensor), or were made
            for another average or another normalisation than the model's (`describe_weights`); files that say
            nothing of it are taken.
    """
    path = Path(path)
    if start and (files := starts_of(model, path)):
        for member, file in files:
            load_weights(member, file, start, new_head)
        return
    state, said = read_file(path)
    one = networks(model)[0]
    state, beside = within_prefix(state, {*model.state_dict(), *one.state_dict()})
    if beside:
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        log.info("%s: %s%s: not the network's, and not taken", path, next(iter(beside)), more)
    state = for_members(model, without_unused(one, state), path, start)
    said |= describe_normaliser(beside)
    state = with_inner_norms(model, with_counters(model, with_constants(model, state)), path)
    if new_head:
        state = with_own_head(model, state, path)
    check_fit(model, state, path)
    if found := first_not_finite(state):
        raise InputError(path, "finite weights", f"a value that is not in {found}")
    check_description(model, said, path, start)
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model as safetensors that say what they were made for."""
    from safetensors.torch import save_file

    save_file(tensors_of(model), path, metadata=describe_weights(model))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict as a file has it: on the CPU, each tensor with bytes of its own.

    A tensor under two names, as where layers share their weights, is there twice.
    """
    tensors: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().contiguous().cpu()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in known else tensor
        known.add(place)
    return tensors


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state_dict in a file, on the CPU, and what the file says of it (safetensors alone can)."""
    if not path.is_file():
        raise InputError(path, FORMATS, "no such file" if not path.exists() else "no file")
    with path.open("rb") as file:
        start = file.read(512)
    refuse_text(path, start)
    if len(start) > 8 and start[8:9] == b"{":  # eight bytes of length, then JSON
        return read_safetensors(path)
    return unwrap(read_torch(path, start), path), {}


def refuse_text(path: Path, start: bytes) -> None:
    """Raise InputError for what downloads leave in the place of weights."""
    if not start:
        raise InputError(path, FORMATS, "an empty file")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(path, FORMATS, "a Git LFS pointer to them (`git lfs pull` fetches the file)")
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(path, FORMATS, "a web page (a download that failed)")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            return tensors, read_description(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(path, "whole safetensors", f"a damaged file ({error})") from None


def read_torch(path: Path, start: bytes) -> Any:
    try:
        # The options of timm's and torchvision's trainers lie beside the weights: names and plain values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # about old pickles; our own line says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = "a pickle that holds more than tensors and could run code"
        raise InputError(path, FORMATS, found + (f" ({asked[1]})" if asked else "")) from None
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        is_pickle = start[:1] == b"\x80"
        found = "a pickle" if is_pickle else f"a damaged or foreign file ({type(error).__name__})"
        raise InputError(path, FORMATS, found) from None


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state_dict of what a file holds: of a trainer's checkpoint, averaged weights if it has them."""
    parts = content if isinstance(content, Mapping) else {}
    if wrappers := [name for name in WRAPPERS if isinstance(parts.get(name), Mapping)]:
        name, *others = wrappers
        if others:
            log.info("%s: %s is taken, not %s", path, name, ", ".join(others))
        content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise InputError(path, FORMATS, f"a {type(content).__name__} without weights")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(path, FORMATS, f"{key!r} of type {type(value).__name__} among them")
    return dict(content)


def within_prefix(state: dict[str, Tensor], wanted: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors under the prefix that most of the wanted keys are found under, and those beside it.

    A prefix is any number of `PREFIXES`, one after another; of several the shortest.
    """
    prefix = max(prefixes_of(state), key=lambda p: (sum(p + key in state for key in wanted), -len(p)))
    within = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return within, {key: value for key, value in state.items() if not key.startswith(prefix)}


def prefixes_of(state: Mapping[str, Tensor]) -> set[str]:
    """Return every prefix of wrappers that a key begins with; "" among them."""
    found = {""}
    for key in state:
        prefix = ""
        while more := next((p for p in PREFIXES if key.startswith(prefix + p)), None):
            prefix += more
            found.add(prefix)
    return found


def with_own_head(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take the model's own tensors of its last linear layer, of an ensemble those of every member."""
    heads = tuple(f"{name}." for name in last_linear_layers(model))
    if not heads:
        raise InputError("model.new_head", "a network with a linear layer, the last of which is new", "none")
    own = {key: value for key, value in model.state_dict().items() if key.startswith(heads)}
    for key, value in own.items():
        there = f"{tuple(state[key].shape)} in {path.name}" if key in state else f"none in {path.name}"
        log.warning("model.new_head: %s of shape %s is new (%s)", key, tuple(value.shape), there)
    return {key: value for key, value in state.items() if not key.startswith(heads)} | own


def last_linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that make the logits: of each network the last linear one, if it has one."""
    names = {module: name for name, module in model.named_modules()}
    linear = ([module for module in one.modules() if isinstance(module, nn.Linear)] for one in networks(model))
    return [names[layers[-1]] for layers in linear if layers]


def without_unused(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what published files hold of layers that their own forward pass never calls (`UNUSED` of the model)."""
    unused = getattr(model, "UNUSED", ())
    return {key: value for key, value in state.items() if not key.startswith(unused)}


def with_constants(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the model's own constants where the file has none of that name (`MAY_LACK` of the model)."""
    names = getattr(model, "MAY_LACK", ())
    return {key: value for key, value in model.state_dict().items() if key.rpartition(".")[2] in names} | state


def with_counters(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the model's own `num_batches_tracked` where no norm of the file has one."""
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    return state | counters if not any(key.endswith("num_batches_tracked") for key in state) else state


def with_inner_norms(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take identity statistics for the norms before averages where no norm of the file is one."""
    inner = {key: value for key, value in model.state_dict().items() if f".{INNER_NORM}." in f".{key}"}
    if not inner or any(f".{INNER_NORM}." in f".{key}" for key in state):
        return state
    log.warning("%s has no norms before averages (kap.norm_first): they start at identity statistics", path)
    ones = {"weight", "running_var"}
    identity = (torch.ones_like if key.rpartition(".")[2] in ones else torch.zeros_like for key in inner)
    return state | {key: make(value) for make, (key, value) in zip(identity, inner.items(), strict=True)}


def check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for the first key, in the model's order, that is missing, differs or is too many."""
    wanted = model.state_dict()
    for key, value in wanted.items():
        if key not in state:
            first = next((name for name in state if name not in wanted), None)
            other = f" (but {first})" if first else ""
            raise InputError(path, f"{key} of shape {tuple(value.shape)}", f"no such key{other}")
        if state[key].shape != value.shape:
            expected, found = (f"shape {tuple(tensor.shape)}" for tensor in (value, state[key]))
            raise InputError(path, f"{key} of {expected}", found)
        if value.is_floating_point() and not state[key].is_floating_point():
            found = str(state[key].dtype).removeprefix("torch.")
            raise InputError(path, f"{key} in floating point (what is quantised has scales beside)", found)
    for key in state:
        if key not in wanted:
            raise InputError(path, f"no key {key} (the model has none)", f"one of shape {tuple(state[key].shape)}")


def first_not_finite(state: Any, name: str = "") -> str | None:
    """Return the dotted name of the first number or tensor, in nested containers, that is not all finite."""
    if isinstance(state, Tensor):
        state = state.float() if state.is_floating_point() and state.itemsize == 1 else state  # as torch cannot ask
        return None if bool(state.isfinite().all()) else name
    if isinstance(state, float):
        return None if math.isfinite(state) else name
    items = (
        state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    )
    named = (first_not_finite(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next(filter(None, named), None)
