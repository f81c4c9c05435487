"""Stronger attacks find what is there, where that is known, and nothing where nothing is."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from sanity.test_sanity import Linear, linear
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import RemediesConfig, SanityConfig
from kapdist.records.sanity import Acted
from kapdist.run.paths import AttackDir
from kapdist.sanity.effort import Effort
from kapdist.sanity.probes import pgd
from kapdist.sanity.remedies import ATTACKS, REMEDIES, act
from kapdist.sanity.run import plan_of, run_sanity
from kapdist.sanity.standing import verdicts_of
from kapdist.sanity.straight import Cut, StraightThrough, cuts, trace
from kapdist.sanity.stronger import Case, SkippedError, classes_alone, members_in_turn, transfer
from kapdist.sanity.subject import Subject, margin
from kapdist.sanity.verdict import CAUSES

LITTLE = SanityConfig(
    iterations=10, draws=5, remedies=RemediesConfig(iterations=8, restarts=2, draws=10, queries=40)
)


def test_every_cause_has_its_remedies_and_every_attack_its_causes() -> None:
    assert set(REMEDIES) == set(CAUSES)
    assert {attack for attacks in REMEDIES.values() for attack in attacks} == set(ATTACKS)


def attacked(subject: Subject, images: Tensor, labels: Tensor, ball: Ball, draws: int = 1) -> Effort:
    """The report's own attack alone, done."""
    effort = Effort(subject, images, labels, ball, LITTLE, 0, draws)
    effort.main = effort.run()
    effort.broken = dict.fromkeys(("pgd, restarts", "pgd on the margin"), effort.breaks(effort.main.last))
    return effort


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_remedy_breaks_what_is_out_of_reach_of_a_linear_model(norm: str) -> None:
    subject, images, labels = linear(side=6)  # Square in L2 wants five pixels at least
    weights = subject.model.weights
    distance = -margin(subject.logits(images), labels) / (weights.abs().sum() if norm == "Linf" else weights.norm())
    eps = distance.sort().values[6:8].mean().item()
    effort = attacked(subject, images, labels, Ball(norm, eps))  # type: ignore[arg-type]
    right = torch.ones_like(labels, dtype=torch.bool)
    first = copy.deepcopy(subject.model)
    found = Acted.model_validate(act(effort, right, None, list(CAUSES), [subject.model], first))
    assert (found.num_robust, found.num_left) == (int((distance >= eps).sum()),) * 2
    assert found.believed
    assert found.in_words().endswith("stronger attacks broke none of them")
    assert {remedy.attack: remedy.skipped for remedy in found.remedies if remedy.skipped} == {
        "averaged gradients": "the model draws no random numbers",
        "members in turn": "the model draws no random numbers",
        "straight-through backward": (
            "no layer is without a derivative, and no inner module has the image or the logits"
        ),
    }


def test_what_is_within_reach_is_found_by_whoever_asks_for_classes_or_for_another_model() -> None:
    subject, images, labels = linear()
    distance = -margin(subject.logits(images), labels) / subject.model.weights.abs().sum()
    eps = distance.sort().values[6:8].mean().item()
    many = LITTLE.model_copy(update={"remedies": LITTLE.remedies.model_copy(update={"queries": 400})})
    for attack in (classes_alone, transfer):
        case = Case(Effort(subject, images, labels, Ball("Linf", eps), many, 0, 1), surrogates=[subject.model])
        attack(case)
        assert not (case.broken & (distance > eps)).any()
        assert case.broken.sum() >= (4 if attack is classes_alone else 7)
    with pytest.raises(SkippedError, match=r"sanity\.surrogate"):
        transfer(Case(Effort(subject, images, labels, Ball("Linf", eps), LITTLE, 0, 1)))


class Opposed(Linear):
    """One of two members at every call: the label leads by `lead` and the image's w . (x - 1/2), or less it."""

    lead = 60 / 255

    def forward(self, images: Tensor) -> Tensor:
        side = 2 * int(torch.randint(0, 2, ())) - 1
        moved = side * (images - 0.5).flatten(1) @ self.weights.flatten()
        return torch.stack([self.lead + moved, -self.lead - moved], 1) / 2


def test_members_whose_gradients_cancel_are_attacked_in_turn() -> None:
    """Either member falls within eps = 1/255, for it has 60/255 to lose and |w| x eps = 192/255; both never do."""
    weights = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    subject = Subject(Opposed(weights), "off", seed=0, batch_size=8)
    images = 0.5 + 0.002 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(6, dtype=torch.int64)
    effort = attacked(subject, images, labels, Ball("Linf", 1 / 255), draws=LITTLE.draws)
    case = Case(effort)
    members_in_turn(case)
    assert case.how == ["2 members"]
    assert not case.broken.any()  # the mean probability says the label as long as one member does
    found = effort.single_draws(case.worst, effort.others)
    members = [next(n for n in range(1, 50) if moves(subject, images, n) == side) for side in (True, False)]
    share = sum(moves(subject, images, draw) for draw in effort.others) / len(effort.others)
    assert all(value in (pytest.approx(share), pytest.approx(1 - share)) for value in found.tolist())
    balanced = pgd(
        subject, images, labels, effort.ball, iterations=20, seed=0, loss=margin, numbers=members
    ).last  # their average has no gradient
    assert effort.single_draws(balanced, effort.others).min() == 1
    acted = act(effort, torch.ones(6, dtype=torch.bool), None, ["randomness"])
    assert acted["num_left"] == acted["num_robust"] == 6
    low, high = sorted((share, 1 - share))
    assert low - 1e-9 <= acted["single_draw_left"] <= high + 1e-9


def moves(subject: Subject, images: Tensor, draw: int) -> bool:
    """Tell which of the two members a draw is of: whether the image's weights speak for the label."""
    brighter = (images[:1] + subject.model.weights / 255).clamp(0, 1)
    return bool(subject.logits(brighter, draw)[0, 0] > subject.logits(images[:1], draw)[0, 0])


class Signs(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.sign()


class SignsInPlace(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.sign_()


class Behind(nn.Module):
    """A network behind a step without derivative, in no_grad, and rounded after."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.network((255 * images).round() / 255).round(decimals=1)


def layers(*inner: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 5)
    return nn.Sequential(ends[0], *inner, *ends[1:]).eval().requires_grad_(False)


def test_layers_without_a_derivative_are_found_and_no_others() -> None:
    norm = nn.GroupNorm(1, 4)
    honest = nn.ReLU(inplace=True), nn.Softmax(1), norm, nn.MaxPool2d(3, 1, 1), nn.Dropout(), nn.Tanh()
    model = layers(*honest, nn.Sequential(nn.ReLU(), Signs()), nn.ReLU())
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert trace(model, images, torch.Size((4, 5))).dead == ["7.1"]
    assert trace(layers(*honest), images, torch.Size((4, 5))).dead == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    straight = StraightThrough(model, Cut(dead=("7.1",)))
    assert torch.equal(straight(images), model(images))


def test_the_backward_pass_of_a_dead_layer_is_the_identity() -> None:
    """Of a sign behind the last tanh the chain rule with the identity is that of the network without it."""
    model, smooth = layers(nn.Tanh(), Signs()), layers(nn.Tanh())
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradients = [
        torch.autograd.grad(function(images)[:, 2].sum(), images)[0]
        for function in (model, StraightThrough(model, Cut(dead=("2",))), smooth)
    ]
    assert gradients[0].abs().max() == 0
    assert torch.allclose(gradients[1], gradients[2])
    assert gradients[2].abs().max() > 0


def test_a_dead_layer_that_works_in_place_is_found_and_passed_by() -> None:
    """What it was given is gone behind it, and looked at there it seemed to pass the gradient on."""
    model, smooth = layers(nn.ReLU(inplace=True), SignsInPlace()), layers(nn.ReLU(inplace=True))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert trace(model, images.detach(), torch.Size((4, 5))).dead == ["2"]
    straight = StraightThrough(model, Cut(dead=("2",)))
    assert torch.equal(straight(images), model(images))
    gradients = [torch.autograd.grad(function(images)[:, 2].sum(), images)[0] for function in (straight, smooth)]
    assert torch.allclose(*gradients)
    assert gradients[1].abs().max() > 0


def test_the_backward_pass_through_a_cut_is_that_of_the_network_inside() -> None:
    inside = layers(nn.Tanh())
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
    model = Behind(inside)
    assert not model(images.requires_grad_()).requires_grad
    options = cuts(trace(model, images, torch.Size((4, 5))), model(images))
    assert options[0] == Cut((), "network.0", ("network.3", 0))
    for function in (StraightThrough(model, options[0]), inside):
        logits = function(images)
        assert torch.equal(logits, inside(images))
        assert torch.equal(
            torch.autograd.grad(logits[:, 0].sum(), images)[0],
            torch.autograd.grad(inside(images)[:, 0].sum(), images)[0],
        )


MASKED = """
import torch
from torch import nn

class Rounded(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, images):
        return self.network((images * 255).round() / 255)

def bare():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5))

def build():
    return Rounded(bare())
"""


def test_an_attack_that_a_step_misled_is_told_what_is_left_of_its_number(world, short) -> None:
    """The whole way: AutoAttack's APGD on a rounded and on the bare model, then a report on what it left."""
    (world.folder / "masked.py").write_text(MASKED)
    sanity = {"num_images": 20, "iterations": 5, "restarts": 2, "queries": 5}
    sanity["remedies"] = {"iterations": 10, "restarts": 2, "queries": 5}
    robust = {}
    for name in ("bare", "build"):
        config = world.config(name=name, model={"factory": f"masked.py:{name}"}, eps=0.1, sanity=sanity)
        plan_attack(world.run, config)
        run_shard(AttackDir(world.run / "attacks" / name).root, 0, 1)
        robust[name] = merge(world.run / "attacks" / name)
    report = run_sanity(world.run, config)
    acted = report.acted
    assert acted is not None
    assert acted.plan_fingerprint == robust["build"].plan_fingerprint
    assert (acted.num_images, report.verdict) == (20, "fail")
    rows = json.loads((world.run / "attacks/build/sanity.json").read_text())["acted"]["remedies"]
    assert sum(row["num_broken"] for row in rows) == acted.num_robust - acted.num_left > 5
    assert acted.num_robust >= robust["build"].num_robust - 2  # two of its images were not examined
    assert abs(acted.num_left - robust["bare"].num_robust) <= 2
    assert not acted.believed
    assert acted.in_words().startswith("The attack (apgd-ce) said ")
    attack, image_set = AttackDir(world.run / "attacks/build"), world.describe_images(None, None)
    other = plan_of(world.run, config.model_copy(update={"eps": 0.05}), attack, image_set)
    verdicts, notes = verdicts_of(attack, other)
    assert verdicts is None
    assert notes[0].startswith("the attack of this name had eps = 0.1, not 0.05")
