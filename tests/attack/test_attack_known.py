"""What was asked before is not asked again: the verdicts of the uncut library, image by image, for fewer passes."""

import sys
from collections.abc import Callable

import attack_world
import pytest
import torch
from attack.kinds import Short
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

import kapdist.attack.stock as stock_of
from kapdist.attack.chunk import ChunkOutcome, attack_chunk
from kapdist.attack.counted import CountedModel
from kapdist.attack.known import equal_rows, places_of
from kapdist.attack.runs import Queries
from kapdist.attack.stock import random_int
from kapdist.records.attack_plan import AttackPlan
from kapdist.rng import derive_seed

MakePlan = Callable[..., AttackPlan]
CPU = torch.device("cpu")
LISTS = (("fab-t",), ("apgd-t", "fab-t"), ("apgd-dlr", "fab-t", "square"), ("square", "fab"), ("apgd-ce", "square"))
EPS = {"Linf": 0.02, "L2": 0.2, "L1": 1.5}


class Fewer(Short):
    """A library of few steps, but of enough that FAB comes back from the border."""

    def __init__(self, model: nn.Module, **options: object) -> None:
        super().__init__(model, **options)
        self.fab.n_iter, self.fab.n_target_classes = 5, min(4, self.fab.n_target_classes)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_of, "AutoAttack", Fewer)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 8, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 10)
        return nn.Sequential(*layers).eval().requires_grad_(False)


def chunk_of(model: nn.Module, num_images: int = 6) -> tuple[Tensor, Tensor]:
    images = torch.rand(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[-1] = images[-2]  # the same image twice: each has its own place
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return images, labels


def library_alone(
    model: nn.Module, images: Tensor, labels: Tensor, plan: AttackPlan
) -> tuple[Tensor, CountedModel]:
    """Return what the library breaks with nothing of ours around it, and its passes without those of its checks."""
    counted = CountedModel(model, CPU, 0)
    seed = derive_seed(plan.seed, "attack", 2)
    library = Fewer(counted, attacks=list(plan.attacks), eps=plan.eps, norm=plan.norm, seed=seed, version="custom")
    trace = sys.gettrace()
    _, prediction = AutoAttack.run_standard_evaluation(library, images, labels, batch_size=len(images))
    sys.settrace(trace)
    counted.forwards -= 7 * len(images)
    return (model(images).argmax(1) == labels) & (prediction != labels), counted


def broken(outcome: ChunkOutcome, eps: float) -> Tensor:
    return torch.stack([attack.broke for attack in outcome.attacks if attack.eps <= eps]).any(0)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.sampled_from(LISTS), st.sampled_from(sorted(EPS)), st.sampled_from((0.3, 1.0, 2.0)))
def test_verdicts_are_those_of_the_uncut_library_and_so_is_what_it_would_have_asked(
    seed: int, attacks: tuple[str, ...], norm: str, size: float
) -> None:
    make_plan: MakePlan = attack_world.make_plan.__wrapped__()
    model = network(seed)
    images, labels = chunk_of(model)
    plan = make_plan(norm, size * EPS[norm], attacks, compact=True)
    expected, counted = library_alone(model, images, labels, plan)
    outcome = attack_chunk(model, images, labels, plan, chunk=2)
    assert torch.equal(broken(outcome, plan.eps), expected)
    assert torch.equal((model(outcome.adversarial).argmax(1) != labels)[1:], expected[1:])
    forwards = len(images) + sum(attack.forwards for attack in outcome.attacks)
    assert forwards < counted.forwards
    assert len(images) + sum(attack.library_forwards for attack in outcome.attacks) == counted.forwards
    assert sum(attack.library_backwards for attack in outcome.attacks) == counted.backwards


def test_fab_with_targets_goes_its_way_once_for_all_eps(make_plan: MakePlan) -> None:
    """Without random starts its way does not depend on eps; the library alone, at each eps, breaks the same."""
    model = network(1)
    images, labels = chunk_of(model, 12)
    sweep = (0.01, 0.02, 0.03)
    outcome = attack_chunk(
        model, images, labels, make_plan("Linf", sweep[-1], ("fab-t",), smaller_eps=sweep[:-1], compact=True), 2
    )
    fell = []
    for eps, stage in zip(sweep, outcome.attacks, strict=True):
        plan = make_plan("Linf", eps, ("fab-t",))
        expected, _ = library_alone(model, images, labels, plan)
        assert torch.equal(broken(outcome, eps), expected)
        fell.append(int(stage.broke.sum()))
        if eps > sweep[0]:
            assert (stage.forwards, stage.backwards) == (stage.broke.sum(), 0)  # the verdict of what falls
            # What the library asks for on those images alone, which are what is left at the smaller eps.
            left = stage.attacked
            _, counted = library_alone(model, images[left], labels[left], plan)
            assert stage.library_forwards == counted.forwards - left.sum()
            assert stage.library_backwards == counted.backwards
    assert fell[0] > 0
    assert sum(fell[1:]) > 0


def test_the_gradient_that_nobody_reads_is_not_worked_out(make_plan: MakePlan) -> None:
    model = network(1)
    images, labels = chunk_of(model)
    outcome = attack_chunk(model, images, labels, make_plan("Linf", 1e-5, ("apgd-ce",), compact=True), 2)
    (stage,), num_attacked = outcome.attacks, 5
    assert stage.library_backwards == 7 * num_attacked  # six steps from one start
    assert stage.backwards == 6 * num_attacked
    # The clean prediction is known, before the attack and as its verdict.
    assert (stage.forwards, stage.library_forwards) == (7 * num_attacked, 9 * num_attacked)


def test_square_s_best_point_is_not_asked_about_again() -> None:
    passed = []

    def scores(images: Tensor, rows: Tensor) -> Tensor:
        passed.append(rows.tolist())
        value = images.flatten(1).mean(1)
        return torch.stack([1 - value, value], 1)

    run = Queries(torch.tensor([4, 7, 9]), torch.tensor([0, 0, 0]))
    first = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1).expand(3, 3, 2, 2).contiguous()
    answer = run.answer(scores, first)
    answer.fill_(torch.nan)  # as the library writes into it
    worse, better = first.clone(), first.clone()
    worse[1], better[2] = 0.15, 0.9
    assert run.answer(scores, worse)[:, 1].tolist() == pytest.approx([0.1, 0.15, 0.3])
    assert run.answer(scores, better)[:, 1].tolist() == pytest.approx([0.1, 0.2, 0.9])
    assert passed == [[4, 7, 9], [7], [9]]
    assert run.left.tolist() == [0, 1]  # the last has fallen, and the library asks about it no more


def test_square_draws_the_numbers_of_the_library() -> None:
    attack = SquareAttack(nn.Identity(), eps=1.0, device="cpu")
    torch.manual_seed(5)
    expected = [attack.random_int(0, 29) for _ in range(20)]
    torch.manual_seed(5)
    assert [random_int(0, 29) for _ in range(20)] == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_images_are_found_among_others_each_at_a_place_of_its_own(kinds: list[int], data: st.DataObject) -> None:
    others = torch.tensor(kinds).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    rows = sorted(data.draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1)))
    places = places_of(others[rows], others)
    assert equal_rows(others[places], others[rows]).all()
    assert places.tolist() == sorted(set(places.tolist()))
    assert places_of(others[rows] + 9, others).tolist() == [-1] * len(rows)
