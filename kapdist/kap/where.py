"""Which convolutions are meant: shell patterns of their dotted names."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

NOT = "!"


def named_like(patterns: Sequence[str]) -> Callable[[str, nn.Module], bool]:
    """A `where` for `kapify`: convolutions of which a pattern has the name, and no pattern after a "!" has.

    `*` stands for anything, dots included, `?` for one character, [ab] for one of these. Patterns that all begin
    with "!" leave out what they match and take the rest.
    """
    taken = [pattern for pattern in patterns if not pattern.startswith(NOT)] or ["*"]
    left = [pattern.removeprefix(NOT) for pattern in patterns if pattern.startswith(NOT)]

    def where(name: str, module: nn.Module) -> bool:
        return any(fnmatchcase(name, p) for p in taken) and not any(fnmatchcase(name, p) for p in left)

    return where


def without_a_match(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The patterns that have the name of no convolution of the model."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [p for p in patterns if not any(fnmatchcase(name, p.removeprefix(NOT)) for name in names)]
