"""Whether a model is still what it was, after code that is not its own had it in its hands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kapdist.kap.normed import HOOKS


class Kept:
    """A model as it stands: values of its tensors, its modules, their mode, what is frozen, their hooks.

    Args:
        attributes: what else its modules have too; not for code that calls the model, which may count its calls.
    """

    def __init__(self, model: nn.Module, attributes: bool = False) -> None:
        self.model, self.attributes = model, attributes
        self.tensors = {name: value.clone() for name, value in state_of(model).items()}
        self.facts = facts_of(model, attributes)

    def changed_tensor(self) -> str:
        """Return the first parameter or buffer that has another value; "" if none has."""
        after = state_of(self.model)
        changed = [name for name, old in self.tensors.items() if name not in after or not same(old, after[name])]
        return (changed or ["a new one" if len(after) != len(self.tensors) else ""])[0]

    def change(self) -> str:
        """Return the first thing that is another than before; "" if nothing is."""
        after = facts_of(self.model, self.attributes)
        changed = [name for name in {**self.facts, **after} if not alike(self.facts, after, name)]
        return changed[0] if changed else self.changed_tensor()

    def restore(self) -> None:
        """Put back values, modes and what is frozen; not modules and hooks."""
        with torch.no_grad():
            for name, value in state_of(self.model).items():
                if name in self.tensors:
                    value.copy_(self.tensors[name])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.facts.get(frozen(name), parameter.requires_grad))
        for name, module in self.model.named_modules():
            module.training = self.facts.get(mode(name), module.training)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those that are not saved too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def facts_of(model: nn.Module, attributes: bool) -> dict[str, Any]:
    """Return what decides what a model does, but for the values of its tensors, by what it is called."""
    facts: dict[str, Any] = {frozen(name): value.requires_grad for name, value in model.named_parameters()}
    for name, module in model.named_modules():
        facts[mode(name)] = module.training
        facts[f"the module {name}"] = id(module)
        facts[f"a hook of {called(name)}"] = [len(getattr(module, hooks, ())) for hooks in HOOKS]
        own = {key: value for key, value in vars(module).items() if attributes and not key.startswith("_")}
        facts |= {f"{name}.{key}".lstrip("."): value for key, value in own.items() if key != "training"}
    return facts


def frozen(name: str) -> str:
    return f"requires_grad of {name}"


def mode(name: str) -> str:
    return f"the mode of {called(name)}"


def called(name: str) -> str:
    return name or "the model"


def alike(before: dict[str, Any], after: dict[str, Any], name: str) -> bool:
    if name not in before or name not in after:
        return False
    old, new = before[name], after[name]
    return old is new or (isinstance(old, bool | int | float | str | tuple | list) and old == new)


def same(old: Tensor, new: Tensor) -> bool:
    """Tell whether two tensors hold the same values; NaN, as memory that nobody uses may hold, is equal to NaN."""
    if torch.equal(old, new):
        return True
    return torch.equal(old.isnan(), new.isnan()) and torch.equal(old.nan_to_num(), new.nan_to_num())
