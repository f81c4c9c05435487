"""Networks by other people: what a function named in a config returns, for any use that ours have."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kapdist.errors import InputError, shown
from kapdist.models import live, zoo
from kapdist.models.imported import MODEL, first_on_path, folder_of, import_module, place_of, said


def call_factory(factory: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return what `package.module:function`, `package.module.function`, `file.py:function` or a zoo's name returns.

    Raises:
        InputError: it cannot be imported, called with these arguments, or returns no nn.Module.
    """
    if live.is_live(factory):
        return live.module_of(factory)
    function = find_factory(factory)
    arguments = copy.deepcopy(dict(arguments or {}))
    try:
        with first_on_path(folder_of(parts_of(factory)[0])):  # it may import what lies beside it only now
            model = function(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        called = f"with {shown(arguments)}" if arguments else "without arguments"
        expected = f"a function that returns the model when called {called}"
        raise InputError(place_of(factory), expected, said(error)) from error
    if not isinstance(model, nn.Module):
        raise InputError(place_of(factory), "an nn.Module to be returned", f"a {type(model).__name__}")
    return model


def find_factory(factory: str, key: str = MODEL) -> Callable[..., Any]:
    """Return the function that a factory names, under a key of a config.

    Raises:
        InputError: it names none, or what it lies in cannot be imported.
    """
    if zoo.zoo_of(factory):
        return zoo.find(factory)
    if live.is_live(factory):
        return lambda: live.module_of(factory)
    module_name, name = parts_of(factory, key)
    function = getattr(import_module(module_name, place_of(factory, key)), name, None)
    if not callable(function):
        found = "no such name" if function is None else f"a {type(function).__name__}"
        raise InputError(place_of(factory, key), f"a function {name} in {module_name}", found)
    return function


def parts_of(factory: str, key: str = MODEL) -> tuple[str, str]:
    """Return the module or the file of a factory, and the name in it."""
    module, _, name = factory.rpartition(":")
    if ":" not in factory and not factory.endswith(".py"):
        module, _, name = factory.rpartition(".")
    if not module or not name:
        expected = "package.module:function or file.py:function"
        raise InputError(place_of(factory, key), expected, "no colon between the two")
    return module, name


def factory_sha256(factory: str, key: str = MODEL) -> str | None:
    """Return the sha256 of a factory's file, of a zoo's network that of the one that makes it; None without."""
    if live.is_live(factory):
        return None
    name = zoo.module_of(factory) if zoo.zoo_of(factory) else parts_of(factory, key)[0]
    file = name if name.endswith(".py") else import_module(name, place_of(factory, key)).__file__
    if not file or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def check_factory(factory: str, known: str | None, key: str = MODEL) -> None:
    """Raise InputError unless a factory's file has the sha256 that is known of it."""
    found = factory_sha256(factory, key)
    if found != known:
        whose = "the factory's" if key == MODEL else "the function's"
        expected = f"{whose} file as it was (sha256 {(known or 'none')[:12]})"
        raise InputError(place_of(factory, key), expected, f"another sha256 ({(found or 'none')[:12]})")


def check_state(model: nn.Module, place: object) -> None:
    """Raise InputError unless the state_dict is tensors with bytes of their own: nothing else can be told apart."""
    for key, value in model.state_dict().items():
        if found := what_has_no_bytes(value):
            expected = (
                "a state_dict of dense tensors with values (return the model in floating point, built to the end)"
            )
            raise InputError(place, expected, f"{key}, {found}")


def what_has_no_bytes(value: Any) -> str:
    """Say what it is that an entry of a state_dict is instead of a plain tensor; "" if it is one."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "a lazy parameter without a shape (let the factory show the model an image)"
    if value.is_meta:
        return "a tensor on the meta device, without values"
    if value.is_quantized or value.layout != torch.strided:
        return f"a tensor of {value.dtype}, {value.layout}"
    return ""
