"""Rooms that may be called: `kapdist.attack` is a package, and the function of `kapdist.api` too."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that may be called: then it is the function of its name in `kapdist.api`."""

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        return function(self.__name__.rpartition(".")[2])(*arguments, **keys)


def function(name: str) -> Any:
    """Return a function of `kapdist.api`, which is imported only now: it imports nearly everything."""
    return getattr(importlib.import_module("kapdist.api"), name)


def callable_room(name: str) -> None:
    """Let the package of this name be called."""
    sys.modules[name].__class__ = Room
