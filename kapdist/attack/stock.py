"""The stock attacks on one chunk of images: AutoAttack (Croce & Hein 2020, https://arxiv.org/abs/2003.01690).

Attack after attack on those that are left, as the library's own run_standard_evaluation does, but for: its
state file (resuming from it always raises), its check for dynamic models (it ends with sys.settrace(None), which
kills coverage and debuggers), targets that do not exist, and the caller's random state, which is given back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from kapdist.attack.model import CountedModel
from kapdist.attack.plan import AttackName, AttackPlan, Norm, Settings
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.rng import derive_seed

FEWEST_CLASSES: dict[AttackName, int] = {"apgd-dlr": 3, "apgd-t": 4}  # what their losses subscript
FAB_IS_SLOW_ABOVE = 100
RELATIVE_TOLERANCE = 1e-6
FLOAT32_SPACING = 2.0**-24  # of floats just below 1


@dataclass(frozen=True)
class AttackOutcome:
    """One attack on a chunk of B images; tensors are (B,), values where `attacked` is False mean nothing."""

    name: str
    attacked: Tensor
    broke: Tensor
    norm: Tensor
    """Of the image that the attack handed back, float64; 0 where it gave up."""
    prediction: Tensor
    forwards: int
    """Images that passed forward, the one that decides the verdict included."""
    backwards: int
    seconds: float


@dataclass(frozen=True)
class ChunkOutcome:
    """All attacks on a chunk."""

    clean_prediction: Tensor
    attacks: tuple[AttackOutcome, ...]
    adversarial: Tensor
    """(B, 3, height, width): the image that broke the model, else the clean one."""
    seconds: float


def attack_chunk(model: nn.Module, images: Tensor, labels: Tensor, plan: AttackPlan, chunk: int) -> ChunkOutcome:
    """Attack one chunk; the outcome is a function of the arguments alone.

    Args:
        model: in eval mode, frozen; on the device of the images.
        images: (batch, 3, height, width), float32 in [0, 1].
        labels: (batch,), int64.

    Raises:
        RuntimeError: an adversarial image that would count leaves the ball, [0, 1] or the finite numbers.
    """
    started = time.perf_counter()
    seed = derive_seed(plan.seed, "attack", chunk)
    counted = CountedModel(model, images.device, derive_seed(plan.seed, "model", chunk))
    images = images.contiguous()  # the library calls .view on them, and channels-last would round otherwise
    devices = [images.device] if images.device.type == "cuda" else []
    noise_seed = derive_seed(plan.seed, "noise", chunk)
    with torch.random.fork_rng(devices=devices), noise(model, plan.noise, seed=noise_seed), torch.no_grad():
        library = stock_library(counted, plan, seed, images.device)
        prediction = counted(images).max(dim=1)[1]
        robust, adversarial = prediction == labels, images.clone()
        outcomes = []
        for name in plan.attacks:
            outcome, found = attack_survivors(library, name, images, labels, robust)
            check_adversarial(name, plan, images[outcome.broke], found[outcome.broke])
            adversarial[outcome.broke] = found[outcome.broke]
            robust = robust & ~outcome.broke
            outcomes.append(outcome)
    return ChunkOutcome(prediction, tuple(outcomes), adversarial, time.perf_counter() - started)


def attack_survivors(
    library: AutoAttack, name: AttackName, images: Tensor, labels: Tensor, robust: Tensor
) -> tuple[AttackOutcome, Tensor]:
    """Run one attack on the images that are left, from their clean form; return what it found for all."""
    started, counted = time.perf_counter(), library.model
    forwards, backwards = counted.forwards, counted.backwards
    found, prediction = images.clone(), torch.zeros_like(labels)
    survivors = robust.nonzero().squeeze(1)
    if len(survivors):
        adversarial = perturb(library, name, images[survivors], labels[survivors])
        found[survivors] = drop_rounding(adversarial.detach())
        prediction[survivors] = counted(found[survivors]).max(dim=1)[1]
    outcome = AttackOutcome(
        name=name,
        attacked=robust.clone(),
        broke=robust & (prediction != labels),
        norm=perturbation_norm(found, images, library.norm),
        prediction=prediction,
        forwards=counted.forwards - forwards,
        backwards=counted.backwards - backwards,
        seconds=time.perf_counter() - started,
    )
    return outcome, found


def perturb(library: AutoAttack, name: AttackName, images: Tensor, labels: Tensor) -> Tensor:
    """Call one attack as run_standard_evaluation does, with what it sets before."""
    if name in ("apgd-ce", "apgd-dlr"):
        attack = library.apgd
        attack.loss = name.removeprefix("apgd-")
    elif name == "apgd-t":
        attack = library.apgd_targeted
    elif name in ("fab", "fab-t"):
        attack = library.fab
        attack.targeted = name == "fab-t"
        if attack.targeted:
            attack.n_restarts = 1  # and it stays so for a `fab` that follows, as in the library
    else:
        attack = library.square
    attack.seed = library.get_seed()
    adversarial: Tensor = attack.perturb(images, labels)
    return adversarial


def stock_library(model: nn.Module, plan: AttackPlan, seed: int, device: torch.device) -> AutoAttack:
    """Return a fresh AutoAttack as the plan wants it; its attacks keep state, so every chunk has its own."""
    library = make_library(model, plan.version, plan.attacks, plan.norm, plan.eps, seed, device)
    limit_targets(library, plan.model.num_classes)
    assert settings_of(library) == plan.settings, "the library is not the one that was planned with"
    return library


def make_library(
    model: nn.Module,
    version: str,
    attacks: Sequence[AttackName],
    norm: Norm,
    eps: float,
    seed: int,
    device: torch.device,
) -> AutoAttack:
    own_list = list(attacks) if version == "custom" else None
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
    version: str, attacks: Sequence[AttackName], norm: Norm, eps: float, num_classes: int
) -> tuple[tuple[AttackName, ...], Settings, list[str]]:
    """Return the list of attacks of a version, the library's settings for it, and what to note about them.

    Raises:
        InputError: an attack whose loss needs more classes than there are.
    """
    library = make_library(nn.Identity(), version, attacks, norm, eps, 0, torch.device("cpu"))
    names: tuple[AttackName, ...] = tuple(library.attacks_to_run)
    for name in names:
        if num_classes < FEWEST_CLASSES.get(name, 2):
            expected = f"at least {FEWEST_CLASSES[name]} classes for {name} (or version custom without it)"
            raise InputError(f"version={version}", expected, f"{num_classes}")
    before = settings_of(library)
    limit_targets(library, num_classes)
    settings = settings_of(library)
    return names, settings, notes_on(names, before, settings, num_classes)


def notes_on(names: tuple[AttackName, ...], stock: Settings, settings: Settings, num_classes: int) -> list[str]:
    notes = []
    if ("apgd-t" in names and stock.apgd_targets != settings.apgd_targets) or (
        "fab-t" in names and stock.fab_targets != settings.fab_targets
    ):
        notes.append(f"targeted attacks aim at {num_classes - 1} classes, all there are, not at 9")
    if "fab" in names and num_classes > FAB_IS_SLOW_ABOVE:
        passes = num_classes * settings.iterations * settings.fab_restarts
        notes.append(f"untargeted fab costs a backward pass per class and step: up to {passes:,} per image")
    return notes


def perturbation_norm(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation, (batch,), float64."""
    delta = (adversarial.double() - images.double()).flatten(1)
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    return torch.linalg.vector_norm(delta, order, dim=1)


def largest_norm(norm: Norm, eps: float, num_values: int) -> float:
    """Return the norm up to which a float32 image counts as within eps.

    A relative 1e-6 for the float32 arithmetic of the attacks, and one spacing of the floats below 1 (times the
    root of their number for a sum): x + eps, rounded to float32, lies half of it from where it should, which at
    Linf 4/255 is a relative 1.8e-6 in every APGD image.
    """
    values = 1.0 if norm == "Linf" else math.sqrt(num_values)
    return eps * (1 + RELATIVE_TOLERANCE) + values * FLOAT32_SPACING


def drop_rounding(images: Tensor) -> Tensor:
    """Bring values that are one float32 rounding outside of [0, 1] back, as L1 attacks leave them; no others."""
    inside = images.clamp(0, 1)
    return torch.where((images - inside).abs() <= 2 * FLOAT32_SPACING, inside, images)


def check_adversarial(name: str, plan: AttackPlan, images: Tensor, adversarial: Tensor) -> None:
    """Raise RuntimeError unless every image is finite, in [0, 1] and within eps of the clean one."""
    if not len(images):
        return
    if not adversarial.isfinite().all():
        raise RuntimeError(f"{name} returned an adversarial image that is not finite")
    low, high = adversarial.min().item(), adversarial.max().item()
    if low < 0 or high > 1:
        raise RuntimeError(f"{name} returned an adversarial image outside [0, 1]: from {low} to {high}")
    largest = perturbation_norm(adversarial, images, plan.norm).max().item()
    if largest > largest_norm(plan.norm, plan.eps, images[0].numel()):
        raise RuntimeError(f"{name} returned an image at {plan.norm} distance {largest}, beyond eps {plan.eps}")
