"""The user's attacks tried on two images before anything is queued: what a shard would refuse, the plan does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.chunk import watched_model
from kapdist.attack.counted import CountedModel
from kapdist.attack.own.user import KEY, UserAttack, UserFunction
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.models.factory import place_of
from kapdist.models.shown import shown_images
from kapdist.records.attack_plan import AttackPlan

IMAGES = 2


def try_functions(plan: AttackPlan, network: nn.Module, functions: dict[str, UserFunction]) -> None:
    """Call each function twice.

    Raises:
        InputError: as `UserAttack.perturb`; or the second time it returns other images.
    """
    for name, function in functions.items():
        first, second = (tried(plan, network, name, function) for _ in range(2))
        if not torch.equal(first, second):
            found = "others when called again (does it keep something, or draw where no seed reaches?)"
            raise InputError(place_of(name, KEY), "the same images from the same arguments", found)


def tried(plan: AttackPlan, network: nn.Module, name: str, function: UserFunction) -> Tensor:
    images = shown_images(network, plan.data.resolution)[:IMAGES]
    with noise(network, plan.noise, seed=plan.seed), torch.no_grad():
        model = watched_model(CountedModel(network, images.device, plan.seed), plan, 0)
        labels = model(images).argmax(1)
        return UserAttack(model, Ball(plan.norm, plan.eps), name, function).perturb(images, labels)
