"""A module that a program holds, under a name that plans and messages have for it.

Only the process that holds it can build it again: there is no other way to it, and no weights file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn

from kapdist.errors import InputError

GIVEN: dict[str, nn.Module] = {}
_giving = threading.Lock()


def is_live(factory: str) -> bool:
    return factory.startswith("<")


def module_of(factory: str) -> nn.Module:
    """Return the module that a program gave under this name.

    Raises:
        InputError: none did.
    """
    if factory not in GIVEN:
        expected = "the Python program that holds the module (or name a factory and its weights)"
        raise InputError(f"model {factory}", expected, "another process")
    return GIVEN[factory]


@contextlib.contextmanager
def given(module: nn.Module) -> Iterator[str]:
    """Let a module stand for a factory; yields its name. Afterwards it is on the device and as frozen as before.

    Raises:
        InputError: it, or a part of it, is in training mode; another of this name is asked about at the same time.
    """
    name = f"<{type(module).__name__}>"
    if training := [part or "the module" for part, inner in module.named_modules() if inner.training]:
        raise InputError(
            f"model {name}", "a module in evaluation mode (model.eval())", f"{training[0]} in training"
        )
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    before = device_of(module)
    with _giving:
        if name in GIVEN:
            raise InputError(f"model {name}", "one such module asked about at a time in a process", "two")
        GIVEN[name] = module
    try:
        yield name
    finally:
        del GIVEN[name]
        module.to(before)
        for parameter in learnt:
            parameter.requires_grad_(True)


def device_of(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
