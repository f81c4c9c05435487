"""The gradient of another module (BPDA): what a step without a gradient hides is broken as if it were not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack.kinds import Linear, attacked, distances, images_at

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.counted import CountedModel
from kapdist.attack.own.bpda import StraightThrough
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.run.paths import AttackDir

World = Any
SHARES = (2.0, 0.4, 0.5, -0.4, 0.45, 1.5)
"""Distances in eps: no random start finds what lies as far as 0.4."""
# A 200th of eps: at these distances the answers are the linear model's.
ROUNDED = "Before(5, lambda images: (images * 10_000).round() / 10_000)"
SMOOTH = """
from attack.kinds import Linear

def smooth(model):
    network = Linear(5)
    network.load_state_dict(model.state_dict())
    return network
"""


def broken(world: World, model: str, **fields: Any) -> Any:
    images, labels = images_at(SHARES, 5, "Linf")
    return attacked(world, model, images, labels, num_classes=5, chunk_size=3, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"attacks": ("apgd-ce",)},
        {"attacks": ("apgd-dlr", "apgd-t")},
        {"attacks": ("fab-t",)},
        {"attacks": ("random-noise",), "screen": 10},
        {"attacks": ("apgd-ce",), "noise": "fresh", "eot": 2},
    ],
    ids=lambda fields: "+".join(fields["attacks"]),
)
def test_a_rounded_input_falls_to_the_numbers_of_the_linear_model(
    world: World, short: None, fields: dict[str, Any]
) -> None:
    (world.folder / "bpda.py").write_text(SMOOTH)
    images, labels = images_at(SHARES, 5, "Linf")
    distance = distances(images, labels, 5, "Linf")
    exact = (distance > 0) & (distance < 0.02)
    assert torch.equal(broken(world, "Linear(5)", **fields).broken, exact)
    assert not broken(world, ROUNDED, **fields).broken.any(), "the rounding hides nothing: nothing is tested"
    found = broken(world, ROUNDED, gradient_of="bpda.py:smooth", **fields)
    assert torch.equal(found.broken, exact)
    assert found.plan.functions.keys() == {"bpda.py:smooth"}
    assert found.summary.gradient_of == "bpda.py:smooth"


def test_a_model_without_any_gradient_can_be_planned_with_one(world: World, short: None) -> None:
    (world.folder / "bpda.py").write_text(SMOOTH)
    detached = "Before(5, lambda images: images.detach())"
    with pytest.raises(InputError, match="logits that depend differentiably"):
        broken(world, detached)
    assert broken(world, detached, gradient_of="bpda.py:smooth").broken.sum() == 3


def test_logits_are_the_model_s_to_the_bit_and_the_gradient_is_the_other_s() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=random)
    weights = torch.randn(4, 5, generator=random)
    model, smooth = Linear(5), Linear(5)
    smooth.weight.data = torch.randn(5, 192, generator=random) * 1e30
    points = images.clone().requires_grad_()
    logits = StraightThrough(model, smooth)(points)
    assert torch.equal(logits, model(images))
    (gradient,) = torch.autograd.grad((weights * logits).sum(), points)
    assert torch.equal(gradient, (weights @ smooth.weight).view_as(images))
    # The softmax and the shares of the draws are those of the model's own logits.
    averaged = AveragedModel(CountedModel(StraightThrough(model, smooth), images.device, 0), 4, 4, 0)
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * averaged(points)).sum(), points)
    own = torch.autograd.functional.vjp(lambda z: z.log_softmax(1), model(images), weights)[1]
    assert torch.allclose(gradient, (own @ smooth.weight).view_as(images), rtol=1e-4)


def test_every_gradient_is_two_passes_forward_and_one_back() -> None:
    model = CountedModel(StraightThrough(Linear(5), Linear(5)), torch.device("cpu"), 0)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        model(images)
    assert (model.forwards, model.backwards) == (3, 0)
    model(images.requires_grad_()).sum().backward()
    assert (model.forwards, model.backwards) == (9, 3)


FUNCTIONS = {
    "return 3": "expected an nn.Module to be returned, found a int",
    "raise ValueError('so')": "returns a module when called with the model, found ValueError: so (bpda.py, line 5)",
    "model.change = abs; return model": "which stays as it is (copy.deepcopy(model)), found change changed",
    "model.weight.data.zero_(); return model": "which stays as it is (copy.deepcopy(model)), found weight changed",
    "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))": "= (6, 5), found (6, 4)",
    "return Returns(5, lambda logits: logits.detach())": "differentiably on the images, found logits without",
    "own = torch.Generator()\n    return Returns(5, lambda logits: logits + torch.rand(5, generator=own))": (
        "which attacks seed, found logits"
    ),
}


@pytest.mark.parametrize("body", FUNCTIONS)
def test_a_function_that_gives_no_gradient_is_refused(world: World, body: str) -> None:
    head = "import torch\nfrom attack.kinds import *\n\ndef smooth(model):\n    "
    (world.folder / "bpda.py").write_text(head + body + "\n")
    with pytest.raises(InputError) as caught:
        broken(world, ROUNDED, gradient_of="bpda.py:smooth")
    assert str(caught.value).startswith("gradient_of=bpda.py:smooth: expected ")
    assert FUNCTIONS[body] in str(caught.value)


def test_another_file_is_another_plan(world: World, short: None) -> None:
    (world.folder / "bpda.py").write_text(SMOOTH)
    (world.folder / "factory.py").write_text("from attack.kinds import *\n\ndef build():\n    return Linear(5)\n")
    config = world.config(gradient_of="bpda.py:smooth")
    plan = plan_attack(world.run, config)
    assert plan.notes[-1].startswith("gradients are those of bpda.py:smooth (sha256 ")
    (world.folder / "bpda.py").write_text(SMOOTH + "\n")
    with pytest.raises(InputError, match=r"functions.bpda.py:smooth = "):
        plan_attack(world.run, config)
    with pytest.raises(InputError, match=r"gradient_of=bpda.py:smooth: expected the function's file as it was"):
        run_shard(AttackDir(world.run / "attacks" / "aa").root, 0, 1)
