"""A network by others may keep what it makes at its first call: the pass that makes it is none without gradients.

Whatever is made in inference mode can never be part of a gradient again ("Inference tensors cannot be saved for
backward"), and a run's config may name such a network as an attack's may.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from outside import Caching
from torch import nn

from kapdist.attack import verify
from kapdist.attack.chunk import attack_chunk
from kapdist.certify.draws import NoisyCopies
from kapdist.corruptions import cells
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.corruptions import Cell, CorruptionPlan

CPU = torch.device("cpu")


@pytest.fixture
def caching(tiny: nn.Module) -> Caching:
    return Caching(tiny).eval()


@pytest.fixture(params=["of the attack", "of the run"])
def plan(request: pytest.FixtureRequest, short: None, make_plan: Callable[..., AttackPlan]) -> AttackPlan:
    """An attack on a network whose factory the attack's config names, or the run's."""
    made = make_plan("Linf", 0.05, ("apgd-ce",))
    if request.param == "of the attack":
        return made
    of_the_run = {"factory": None, "architecture": {"model": {"factory": "m:f"}, "kap": {}}}
    return made.model_copy(update={"model": made.model.model_copy(update=of_the_run)})


def test_it_is_attacked(caching: Caching, plan: AttackPlan) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = Caching(caching.network)(images).argmax(1)
    found = attack_chunk(caching, images, labels, plan, 0)
    assert torch.equal(found.clean_prediction, labels)
    assert found.attacks[0].backwards > 0


def of_corruptions(model: nn.Module, plan: AttackPlan) -> AbstractContextManager[nn.Module]:
    whole = CorruptionPlan(
        subject=plan, cells=(), side=32, frost="drawn", frost_folder=Path(), libraries={}, notes=()
    )
    return cells.answering(model, whole, Cell(kind="fog", severity=1), 0, CPU)


@pytest.mark.parametrize(
    "answering",
    [
        lambda model, plan: verify.answering(model, plan, 0),
        of_corruptions,
        lambda model, plan: nullcontext(NoisyCopies(model, plan, CPU).model),
    ],
    ids=["verify", "corruptions", "certify"],
)
def test_what_it_keeps_is_an_ordinary_tensor(
    caching: Caching, plan: AttackPlan, answering: Callable[..., AbstractContextManager[nn.Module]]
) -> None:
    with torch.no_grad(), answering(caching, plan) as answer:
        answer(torch.rand(2, 3, 8, 8))
    assert caching.places is not None
    assert not caching.places.is_inference()
