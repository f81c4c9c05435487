"""Train Kernel Average Pooling ResNets over many nodes, attack them in shards, believe the number.

The rooms `kapdist.attack`, `kapdist.sanity`, `kapdist.corruptions` and `kapdist.certify` may be called, as
`kapdist.evaluate` may: they are then the functions of `kapdist.api`. `kapdist.__version__` is the installed one.
"""

import importlib
from typing import Any

CALLED = ("attack", "sanity", "corruptions", "certify")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: this package alone imports nothing."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("kapdist")
    if name == "evaluate":
        return importlib.import_module("kapdist.called").function(name)
    if name in CALLED:
        return importlib.import_module(f"kapdist.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
