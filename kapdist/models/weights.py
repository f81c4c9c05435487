"""Weights from a file into a model: safetensors or a plain state_dict, never code."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.errors import InputError

WRAPPERS = ("state_dict", "model")
FORMATS = "weights as safetensors or a plain state_dict (torch.save)"


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a file into the model; every key must be there, with its shape, and no other.

    Args:
        path: safetensors, or a state_dict written by torch.save, bare or under the key "state_dict" or "model";
            the prefix `module.` of a DDP checkpoint is dropped.

    Raises:
        InputError: no such file, not weights, a pickle that holds more than tensors, or weights that do not fit
            (names the first differing key and both shapes) or are not finite (names the first tensor).
    """
    state = read_state(Path(path))
    check_fit(model, state, path)
    if found := first_not_finite(state):
        raise InputError(path, "finite weights", f"a value that is not in {found}")
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state_dict in a file, on the CPU."""
    if not path.is_file():
        raise InputError(path, FORMATS, "no such file" if not path.exists() else "no file")
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:9] == b"{":  # eight bytes of length, then JSON
        return read_safetensors(path)
    return unwrap(read_torch(path, start), path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
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
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in content.items()}


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
