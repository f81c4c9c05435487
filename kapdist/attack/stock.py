"""The library, AutoAttack (Croce & Hein 2020, https://arxiv.org/abs/2003.01690), set up as a plan wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.own.hard_label import RayS
from kapdist.attack.own.others import Others
from kapdist.attack.own.random_noise import RandomNoise
from kapdist.attack.own.transfer import Transfer
from kapdist.attack.own.user import UserAttack
from kapdist.attack.watch import WatchedModel, watch
from kapdist.errors import InputError
from kapdist.records.attack_plan import SCREEN, AttackPlan, Norm, Settings, Stage, is_library
from kapdist.rng import derive_seed

FEWEST_CLASSES: dict[str, int] = {"apgd-dlr": 3, "apgd-t": 4}  # what their losses subscript
FAB_IS_SLOW_ABOVE = 100


def perturb(library: AutoAttack, name: str, images: Tensor, labels: Tensor) -> Tensor:
    """Call one attack as run_standard_evaluation does, with what it sets before."""
    if name == "screen":
        attack = library.screen
    elif name in ("apgd-ce", "apgd-dlr"):
        attack = library.apgd
        attack.loss = name.removeprefix("apgd-")
    elif name == "apgd-t":
        attack = library.apgd_targeted
    elif name in ("fab", "fab-t"):
        attack = library.fab
        attack.targeted = name == "fab-t"
        if attack.targeted:
            attack.n_restarts = 1  # and it stays so for a `fab` that follows, as in the library
    elif name == "square":
        attack = library.square
    else:
        attack = library.own_attacks[name]
    attack.seed = derive_seed(library.get_seed(), "screen") if name == "screen" else library.get_seed()
    adversarial: Tensor = attack.perturb(images, labels)
    return adversarial


def stock_library(
    model: WatchedModel,
    plan: AttackPlan,
    eps: float,
    seed: int,
    device: torch.device,
    others: Others,
) -> AutoAttack:
    """Return a fresh AutoAttack as the plan wants it, with attacks of our own beside the library's.

    Its attacks keep state, so every chunk has its own.
    """
    library = make_library(model, plan.version, plan.attacks, plan.norm, eps, seed, device)
    limit_targets(library, plan.model.num_classes)
    assert settings_of(library) == plan.settings, "the library is not the one that was planned with"
    library.screen = short_apgd(model, plan, eps, max(1, plan.screen), device)
    library.own_attacks = own_attacks(model, plan, eps, device, others)
    if plan.compact or plan.rescore:
        for attack in (library.screen, library.apgd, library.apgd_targeted, library.fab):
            watch(attack, model, plan.model.num_classes)
    if plan.compact:
        watch(library.square, model, plan.model.num_classes)
    library.square.random_int = random_int
    return library


def random_int(low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
    """Return Square's own random numbers, left on the CPU: as bounds of a slice a GPU would be waited for."""
    return (low + (high - low) * torch.rand(shape)).long()


def of_library(stage: Stage) -> bool:
    """Return whether the library's code runs."""
    return stage.attack == SCREEN or is_library(stage.attack)


def short_apgd(model: nn.Module, plan: AttackPlan, eps: float, steps: int, device: torch.device) -> APGDAttack:
    """Return APGD on cross entropy from one start; of a few steps, it is the screen that goes first."""
    logger = logging.getLogger("auto-attack")
    return APGDAttack(model, n_iter=steps, norm=plan.norm, eps=eps, eot_iter=1, device=device, logger=logger)


def own_attacks(
    model: nn.Module, plan: AttackPlan, eps: float, device: torch.device, others: Others
) -> dict[str, RandomNoise | RayS | Transfer | UserAttack]:
    own, ball = plan.own_settings, Ball(plan.norm, eps)
    attacks: dict[str, RandomNoise | RayS | Transfer | UserAttack] = {
        "random-noise": RandomNoise(model, ball, own.random_draws),
        "hard-label": RayS(model, ball, own.hard_label_queries),
    }
    for name, surrogate in others.surrogates.items():
        apgd = short_apgd(surrogate, plan, eps, plan.settings.iterations, device)
        attacks[name] = Transfer(model, apgd, plan.model.num_classes)
    for name, function in others.functions.items():
        attacks[name] = UserAttack(model, ball, name, function)
    return attacks


def make_library(
    model: nn.Module,
    version: str,
    attacks: Sequence[str],
    norm: Norm,
    eps: float,
    seed: int,
    device: torch.device,
) -> AutoAttack:
    own_list = [name for name in attacks if is_library(name)] if version == "custom" else None
    version = version.removeprefix("eot-")  # the average is the model's, not the library's
    return AutoAttack(model, attacks=own_list, device=device, eps=eps, norm=norm, seed=seed, version=version)


def limit_targets(library: AutoAttack, num_classes: int) -> None:
    """Aim at the classes that exist: with fewer than 10 of them the library's nine targets are out of range."""
    library.apgd_targeted.n_target_classes = min(library.apgd_targeted.n_target_classes, num_classes - 1)
    library.fab.n_target_classes = min(library.fab.n_target_classes, num_classes - 1)


def settings_of(library: AutoAttack) -> Settings:
    return Settings(
        iterations=library.apgd.n_iter,
        eot=library.apgd.eot_iter,
        apgd_restarts=library.apgd.n_restarts,
        apgd_targets=library.apgd_targeted.n_target_classes,
        apgd_shrinking_eps=library.apgd.use_largereps,
        fab_restarts=library.fab.n_restarts,
        fab_targets=library.fab.n_target_classes,
        square_queries=library.square.n_queries,
    )


def resolve(
    version: str, attacks: Sequence[str], norm: Norm, eps: float, num_classes: int
) -> tuple[tuple[str, ...], Settings, list[str]]:
    """Return the list of attacks of a version, the library's settings for it, and what to note about them.

    Raises:
        InputError: an attack whose loss needs more classes than there are.
    """
    library = make_library(nn.Identity(), version, attacks, norm, eps, 0, torch.device("cpu"))
    names: tuple[str, ...] = tuple(attacks if version == "custom" else library.attacks_to_run)
    for name in names:
        if num_classes < FEWEST_CLASSES.get(name, 2):
            expected = f"at least {FEWEST_CLASSES[name]} classes for {name} (or version custom without it)"
            raise InputError(f"version={version}", expected, f"{num_classes}")
    before = settings_of(library)
    limit_targets(library, num_classes)
    settings = settings_of(library)
    return names, settings, notes_on(names, before, settings, num_classes)


def standard_list(norm: Norm, eps: float, num_classes: int) -> tuple[tuple[str, ...], Settings]:
    """Return AutoAttack's standard list and the library's own settings for it.

    Raises:
        InputError: as `resolve`.
    """
    attacks, settings, _ = resolve("standard", (), norm, eps, num_classes)
    return attacks, settings


def square_alone(
    scores: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    queries: int,
    seed: int,
) -> Tensor:
    """Return what the library's Square makes of images by scores alone (https://arxiv.org/abs/1912.00049)."""
    attack = SquareAttack(scores, norm=norm, n_queries=queries, eps=eps, seed=seed)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.no_grad():
        found: Tensor = attack.perturb(images.contiguous(), labels)
    return found


def notes_on(names: tuple[str, ...], stock: Settings, settings: Settings, num_classes: int) -> list[str]:
    notes = []
    if ("apgd-t" in names and stock.apgd_targets != settings.apgd_targets) or (
        "fab-t" in names and stock.fab_targets != settings.fab_targets
    ):
        notes.append(f"targeted attacks aim at {num_classes - 1} classes, all there are, not at 9")
    if "fab" in names and num_classes > FAB_IS_SLOW_ABOVE:
        passes = num_classes * settings.iterations * settings.fab_restarts
        notes.append(f"untargeted fab costs a backward pass per class and step: up to {passes:,} per image")
    return notes
