"""Fewer passes and no weaker verdict: against the library itself, run on the same chunk with the same seed."""

import sys
from collections.abc import Callable

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.chunk import ChunkOutcome, attack_chunk
from kapdist.attack.counted import CountedModel
from kapdist.records.attack_plan import AttackPlan
from kapdist.rng import derive_seed

MakePlan = Callable[..., AttackPlan]
CPU = torch.device("cpu")


def chunk_of(model: nn.Module, num_images: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return images, labels


def library_alone(
    model: nn.Module, images: Tensor, labels: Tensor, plan: AttackPlan
) -> tuple[Tensor, CountedModel]:
    """Run pyautoattack with nothing of ours around it but a count of its passes; return what it broke."""
    counted = CountedModel(model, CPU, 0)
    seed = derive_seed(plan.seed, "attack", 2)
    own_list = list(plan.attacks) if plan.version == "custom" else None
    library = AutoAttack(counted, attacks=own_list, eps=plan.eps, norm=plan.norm, seed=seed, version=plan.version)
    trace = sys.gettrace()
    _, prediction = library.run_standard_evaluation(images, labels, batch_size=len(images))
    sys.settrace(trace)
    checks = 7 * len(images)  # its five passes for randomness, one for the range, one for dynamic models
    counted.forwards -= checks
    return (model(images).argmax(1) == labels) & (prediction != labels), counted


def broken(outcome: ChunkOutcome) -> Tensor:
    return torch.stack([attack.broke for attack in outcome.attacks]).any(0)


def passes(outcome: ChunkOutcome) -> tuple[int, int]:
    forwards = len(outcome.clean_prediction) + sum(attack.forwards for attack in outcome.attacks)
    return forwards, sum(attack.backwards for attack in outcome.attacks)


SETTINGS = [
    (("apgd-dlr", "fab-t"), "Linf", 0.028),
    (("apgd-t",), "L2", 0.3),
    (("apgd-ce",), "L1", 1.5),
]


@pytest.mark.parametrize(("attacks", "norm", "eps"), SETTINGS)
def test_the_verdicts_are_the_library_s_and_with_the_screen_no_fewer(
    tiny: nn.Module, make_plan: MakePlan, attacks: tuple, norm: str, eps: float
) -> None:
    images, labels = chunk_of(tiny, 12)
    plan = make_plan(norm, eps, attacks, compact=True)
    expected, counted = library_alone(tiny, images, labels, plan)
    assert 0 < expected.sum() < 11
    outcome = attack_chunk(tiny, images, labels, plan, chunk=2)
    assert torch.equal(broken(outcome), expected)
    forwards, backwards = passes(outcome)
    assert forwards <= counted.forwards
    assert backwards < counted.backwards
    # What the library would have asked for is known without running it.
    asked = len(images) + sum(attack.library_forwards for attack in outcome.attacks)
    assert asked == counted.forwards
    assert sum(attack.library_backwards for attack in outcome.attacks) == counted.backwards

    screened = attack_chunk(tiny, images, labels, plan.model_copy(update={"screen": 10}), chunk=2)
    assert screened.attacks[0].name == "screen"
    assert screened.attacks[0].broke.any()
    assert (broken(screened) | ~expected).all()
    correct = screened.clean_prediction == labels
    assert torch.equal(tiny(screened.adversarial).argmax(1) != labels, broken(screened) | ~correct)
    ball = Ball(norm, eps)
    assert (ball.distance(screened.adversarial, images) <= ball.largest_distance(192)).all()
    assert ((screened.adversarial >= 0) & (screened.adversarial <= 1)).all()


@pytest.mark.parametrize(
    ("version", "eps", "most"), [("standard", 0.3, 0.5), ("custom", 0.0001, 1.02)], ids=["weak", "robust"]
)
def test_a_weak_model_takes_half_of_the_library_s_passes_and_a_robust_one_hardly_more(
    tiny: nn.Module, make_plan: MakePlan, version: str, eps: float, most: float
) -> None:
    images, labels = chunk_of(tiny, 6)
    attacks = ("apgd-ce", "apgd-t") if version == "custom" else ()
    plan = make_plan("Linf", eps, attacks, version, screen=10, compact=True)
    expected, counted = library_alone(tiny, images, labels, plan)
    outcome = attack_chunk(tiny, images, labels, plan, chunk=2)
    assert torch.equal(broken(outcome), expected)
    assert expected.sum() in (0, 5)
    forwards, backwards = passes(outcome)
    assert forwards <= most * counted.forwards
    assert backwards <= most * counted.backwards
    asked = len(images) + sum(attack.library_forwards for attack in outcome.attacks)
    assert asked == counted.forwards
    assert sum(attack.library_backwards for attack in outcome.attacks) == counted.backwards


def test_an_image_that_falls_at_a_smaller_eps_is_broken_at_every_larger(
    tiny: nn.Module, make_plan: MakePlan
) -> None:
    images, labels = chunk_of(tiny, 12)
    plan = make_plan("Linf", 0.08, ("apgd-ce",), smaller_eps=(0.03, 0.05), compact=True)
    assert [stage.name for stage in plan.stages] == ["apgd-ce@0.03", "apgd-ce@0.05", "apgd-ce@0.08"]
    outcome = attack_chunk(tiny, images, labels, plan, chunk=2)
    left = outcome.clean_prediction == labels
    for attack in outcome.attacks:
        assert torch.equal(attack.attacked, left)
        assert (attack.norm[attack.broke] <= attack.eps * (1 + 1e-5)).all()
        single = make_plan("Linf", attack.eps, ("apgd-ce",))
        alone = broken(attack_chunk(tiny, images, labels, single, chunk=2))
        left = left & ~attack.broke
        assert torch.equal(outcome.clean_prediction.eq(labels) & ~left, alone)
    assert outcome.attacks[0].broke.any()
    assert left.sum() < outcome.attacks[0].attacked.sum()
