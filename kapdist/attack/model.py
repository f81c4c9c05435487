"""The classifier under attack: a run's own model or any other, checked before anything runs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kapdist.config import KapConfig, ModelConfig
from kapdist.errors import InputError
from kapdist.kap import fold
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.records.attack_plan import PlannedModel
from kapdist.run.files import file_sha256
from kapdist.run.paths import weights_sha256


def load_model(source: PlannedModel, run: Path) -> nn.Module:
    """Build the classifier, on the CPU, in eval mode, frozen.

    Frozen because FAB calls `.backward()`, which would fill (and pay for) the gradients of all parameters.

    Raises:
        InputError: it cannot be built, or its weights are not those of `source.weights_sha256`.
    """
    if source.factory is None:
        assert source.architecture is not None
        sections = source.architecture
        model = build_model(ModelConfig(**sections["model"]), KapConfig(**sections["kap"]))
    else:
        model = call_factory(source.factory)
        check_factory(source)
        check_state(model, f"model.factory={source.factory}")
    weights = source.weights_file(run)
    if weights is not None:
        check_sha256(weights, file_sha256_of(weights), source.weights_sha256)
        load_weights(model, weights)
    else:
        check_sha256(f"model.factory={source.factory}", state_sha256(model), source.weights_sha256)
    model = model.eval().requires_grad_(False)
    return fast(model, source) if source.factory is None else model


def fast(model: nn.Module, source: PlannedModel) -> nn.Module:
    """Return a model of our own in the form that computes the same logits soonest."""
    model = fold(model, norms=True) if source.folded else model
    # What fold puts in the place of norms is new, and so in training mode.
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def file_sha256_of(path: Path) -> str:
    if not path.is_file():
        raise InputError(path, "weights (a finished run has model.safetensors)", "no such file")
    return weights_sha256(path)


def check_sha256(place: object, found: str, planned: str) -> None:
    if planned not in ("", found):  # empty while the plan is being made
        hint = "the weights that were planned" if isinstance(place, Path) else "the same weights at every call"
        raise InputError(place, f"{hint} (sha256 {planned[:12]})", f"sha256 {found[:12]}")


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


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of a state_dict: names, shapes, types and bytes, in order.

    Raises:
        InputError: it holds what has no bytes.
    """
    check_state(model, "the model")
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def call_factory(factory: str) -> nn.Module:
    """Return what `package.module:function` or `file.py:function` returns.

    Raises:
        InputError: it cannot be imported, called without arguments, or returns no nn.Module.
    """
    place = f"model.factory={factory}"
    function = find_factory(factory)
    try:
        model = function()
    except (Exception, SystemExit) as error:
        expected = "a function that returns the model when called without arguments"
        raise InputError(place, expected, said(error)) from error
    if not isinstance(model, nn.Module):
        raise InputError(place, "an nn.Module to be returned", f"a {type(model).__name__}")
    return model


def find_factory(factory: str) -> Callable[[], Any]:
    place = f"model.factory={factory}"
    module_name, _, name = factory.rpartition(":")
    if not module_name or not name:
        raise InputError(place, "package.module:function or file.py:function", "no colon between the two")
    function = getattr(import_module(module_name, place), name, None)
    if not callable(function):
        found = "no such name" if function is None else f"a {type(function).__name__}"
        raise InputError(place, f"a function {name} in {module_name}", found)
    return function


def import_module(name: str, place: str) -> ModuleType:
    """Import a module by name or by file, its own folder (or the current one) on the path as python would."""
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise InputError(place, f"the file {name}", "no such file")
    with first_on_path(Path(name).resolve().parent if is_file else Path.cwd()):
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


def factory_sha256(factory: str) -> str | None:
    """Return the sha256 of the file that a factory names; None where the module has none."""
    name = factory.rpartition(":")[0]
    file = name if name.endswith(".py") else import_module(name, f"model.factory={factory}").__file__
    return file_sha256(Path(file)) if file and Path(file).is_file() else None


def check_factory(source: PlannedModel) -> None:
    assert source.factory is not None
    if factory_sha256(source.factory) != source.factory_sha256:
        raise InputError(f"model.factory={source.factory}", "the factory's file as planned", "another sha256")


def said(error: Exception | SystemExit) -> str:
    """Return an error as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
