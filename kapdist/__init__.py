"""Train Kernel Average Pooling ResNets over many nodes, attack them in shards, believe the number.

The rooms `kapdist.attack`, `kapdist.sanity`, `kapdist.corruptions` and `kapdist.certify` may be called, as
`kapdist.evaluate` may: they are then the functions of `kapdist.api`. `kapdist.__version__` is the installed one.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

CALLED = ("attack", "sanity", "corruptions", "certify")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: this package alone imports nothing."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("kapdist")
    if name == "evaluate":
        return function(name)
    if name in CALLED:
        return importlib.import_module(f"kapdist.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CallableRoom(ModuleType):
    """A package that may be called: then it is the function of its name in `kapdist.api`."""

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        return function(self.__name__.rpartition(".")[2])(*arguments, **keys)


def function(name: str) -> Any:
    """Return a function of `kapdist.api`, which is imported only now: it imports nearly everything."""
    return getattr(importlib.import_module("kapdist.api"), name)


def callable_room(name: str) -> None:
    """Let the package of this name be called."""
    sys.modules[name].__class__ = CallableRoom
