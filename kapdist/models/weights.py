"""Weights from a file into a model: safetensors or a plain state_dict, never code."""

from __future__ import annotations

import logging
import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.errors import InputError
from kapdist.models.description import check_description, describe_weights, read_description
from kapdist.models.ensemble import for_members, starts_of

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model")
INNER_NORM = "inner_norm"  # KAPConv2d's name for it
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # of DDP, torch.compile, Lightning, detectors
FORMATS = "weights as safetensors or a plain state_dict (torch.save)"


def load_weights(model: nn.Module, path: Path, start: bool = False) -> None:
    """Copy the weights of a file into the model; every key must be there, with its shape, and no other.

    Norms' `num_batches_tracked` may lack, as torch lets it: older state_dicts have none. So may the norms before
    averages (kap.norm_first), all of them: they then start at identity statistics, which is logged.

    Args:
        path: safetensors, or a state_dict written by torch.save, bare or under the key "state_dict" or "model";
            prefixes that wrappers put before every key (`PREFIXES`, in any order) are dropped.
        start: training goes on from these weights, so plain ones may start a model that averages kernels, and those
            of one network an ensemble, all members alike. With `{member}` in the path, which stands for their
            numbers, each member starts from a file of its own.

    Raises:
        InputError: no such file, not weights, a pickle that holds more than tensors, weights that do not fit
            (names the first differing key and both shapes), are not finite (names the first tensor), or were made
            for another average or another normalisation than the model's (`describe_weights`); files that say
            nothing of it are taken.
    """
    path = Path(path)
    if start and (files := starts_of(model, path)):
        for member, file in files:
            load_weights(member, file, start)
        return
    state, said = read_file(path)
    state = without_prefixes(state, set(model.state_dict()))
    state = for_members(model, state, path, start)
    state = with_inner_norms(model, with_counters(model, without_unused(model, state)), path)
    check_fit(model, state, path)
    if found := first_not_finite(state):
        raise InputError(path, "finite weights", f"a value that is not in {found}")
    check_description(model, said, path, start)
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model as safetensors that say what they were made for."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, path, metadata=describe_weights(model))


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about old pickles; our own line says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(path, FORMATS, "a pickle that holds more than tensors and could run code") from None
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        is_pickle = start[:1] == b"\x80"
        found = "a pickle" if is_pickle else f"a damaged or foreign file ({type(error).__name__})"
        raise InputError(path, FORMATS, found) from None


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise InputError(path, FORMATS, f"a {type(content).__name__} without weights")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(path, FORMATS, f"{key!r} of type {type(value).__name__} among them")
    return dict(content)


def without_prefixes(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Drop the prefixes that all keys have, as long as the model's own keys do not begin so."""
    while True:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None or not state or all(key.startswith(prefix) for key in wanted):
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def without_unused(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what published files hold of layers that their own forward pass never calls (`UNUSED` of the model)."""
    unused = getattr(model, "UNUSED", ())
    return {key: value for key, value in state.items() if not key.startswith(unused)}


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
            raise InputError(path, f"{key} of shape {tuple(value.shape)}", "no such key")
        if state[key].shape != value.shape:
            expected, found = (f"shape {tuple(tensor.shape)}" for tensor in (value, state[key]))
            raise InputError(path, f"{key} of {expected}", found)
    for key in state:
        if key not in wanted:
            raise InputError(path, f"no key {key} (the model has none)", f"one of shape {tuple(state[key].shape)}")


def first_not_finite(state: Any, name: str = "") -> str | None:
    """Return the dotted name of the first number or tensor, in nested containers, that is not all finite."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else name
    if isinstance(state, float):
        return None if math.isfinite(state) else name
    items = (
        state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    )
    named = (first_not_finite(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next(filter(None, named), None)
