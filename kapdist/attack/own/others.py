"""What an attack needs besides the model: the surrogates of its plan and the functions of the user's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from kapdist.attack.model import load_model
from kapdist.attack.own.bpda import KEY as GRADIENT_OF
from kapdist.attack.own.bpda import with_gradient_of
from kapdist.attack.own.user import KEY as ATTACKS
from kapdist.attack.own.user import UserFunction
from kapdist.config.attack import is_function
from kapdist.kap import noise
from kapdist.models.factory import check_factory, factory_sha256, find_factory
from kapdist.records.attack_plan import AttackPlan


@dataclass(frozen=True)
class Others:
    """By the attack's name."""

    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)
    functions: Mapping[str, UserFunction] = field(default_factory=dict)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Keep the surrogates' noise off, theirs too that are not folded: its streams go on from chunk to chunk."""
        with contextlib.ExitStack() as stack:
            for surrogate in self.surrogates.values():
                stack.enter_context(noise(surrogate, "off"))
            yield


def load_others(plan: AttackPlan, run: Path, device: torch.device) -> Others:
    """Load what stands beside the model of a plan.

    Raises:
        InputError: it is not there, or not what was planned with.
    """
    transfers = plan.own_settings.transfers.items()
    surrogates = {attack: load_model(surrogate, run).to(device) for attack, surrogate in transfers}
    return Others(surrogates, load_functions(plan))


def load_functions(plan: AttackPlan) -> dict[str, UserFunction]:
    """Return the user's attacks of a plan by name.

    Raises:
        InputError: one is not there, or its file is another.
    """
    functions = {}
    for name in filter(is_function, plan.attacks):
        check_factory(name, plan.functions[name], ATTACKS)
        functions[name] = find_factory(name, ATTACKS)
    return functions


def load_attacked(plan: AttackPlan, run: Path) -> nn.Module:
    """Build the model under attack, on the CPU, with the gradient that the plan gives it.

    Raises:
        InputError: as `load_model` and `with_gradient_of`, or another file than was planned with.
    """
    model = load_model(plan.model, run)
    if plan.gradient_of is None:
        return model
    check_factory(plan.gradient_of, plan.functions[plan.gradient_of], GRADIENT_OF)
    return with_gradient_of(model, plan.gradient_of)


def sha256_of_functions(attacks: tuple[str, ...], gradient_of: str | None) -> dict[str, str | None]:
    """Return the sha256 of the file of every function that a config names; None where there is none.

    Raises:
        InputError: a module, and not a file, that cannot be imported.
    """
    keys = {name: ATTACKS for name in attacks if is_function(name)}
    keys |= {gradient_of: GRADIENT_OF} if gradient_of else {}
    return {name: factory_sha256(name, key) for name, key in keys.items()}
