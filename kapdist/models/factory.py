"""Networks by other people: what a function named in a config returns, for any use that ours have."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kapdist.errors import InputError, shown

ZOO = ("timm", "torchvision")  # what the extra `zoo` brings


MODEL = "model.factory"  # the key that most functions here are named by


def place_of(factory: str, key: str = MODEL) -> str:
    return f"{key}={factory}"


def call_factory(factory: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return what `package.module:function`, `package.module.function` or `file.py:function` returns.

    Raises:
        InputError: it cannot be imported, called with these arguments, or returns no nn.Module.
    """
    function = find_factory(factory)
    arguments = copy.deepcopy(dict(arguments or {}))
    try:
        with first_on_path(folder_of(parts_of(factory)[0])):  # it may import what lies beside it only now
            model = function(**arguments)
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


def folder_of(module: str) -> Path:
    """Return what stands first on the path, as python would have it: the file's folder, or the current one."""
    return Path(module).resolve().parent if module.endswith(".py") else Path.cwd()


def import_module(name: str, place: str) -> ModuleType:
    """Import a module by name or by file."""
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise InputError(place, f"the file {name}", "no such file")
    with first_on_path(folder_of(name)):
        try:
            return import_file(Path(name)) if is_file else importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script without a main guard ends python
            raise InputError(place, "a module that can be imported", said(error)) from error


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kapdist_factory_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def said(error: Exception | SystemExit) -> str:
    """Return an error as one line, and how to install what is not there."""
    lines = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return line
    package = error.name.partition(".")[0]
    words = "kapdist[zoo]" if package in ZOO else package
    return f"{line} (if it is a package: pip install '{words}')"


def factory_sha256(factory: str, key: str = MODEL) -> str | None:
    """Return the sha256 of the file that a factory names; None where the module has none."""
    name = parts_of(factory, key)[0]
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


def per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def normalise(network: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *rest = inputs
    return ((images - network.mean) / network.std, *rest)


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
