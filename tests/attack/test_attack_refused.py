"""Models and settings that would give a number without a meaning are refused, or said to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kapdist.attack import plan_attack
from kapdist.attack.ball import vacuous_eps
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.plan import AttackPlan
from kapdist.errors import InputError

World = Any
MakePlan = Callable[..., AttackPlan]

STRANGE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    def forward(self, images):
        return self.layers(images)

class Training(Model):
    def train(self, mode=True):
        return super().train(True)

class Noisy(Model):
    def forward(self, images):
        return self.layers(images + 0.1 * torch.randn_like(images))
"""


def test_a_model_that_stays_in_training_mode_or_is_noisy_undeclared_is_refused(world: World) -> None:
    (world.folder / "strange.py").write_text(STRANGE)
    with pytest.raises(InputError, match=r"a model in evaluation mode .*, found the model in training"):
        plan_attack(world.run, world.config(model={"factory": "strange.py:Training"}))
    noisy = {"factory": "strange.py:Noisy"}
    with pytest.raises(InputError, match=r"a deterministic model \(else noise=fresh.* apart in two passes"):
        plan_attack(world.run, world.config(model=noisy))
    plan = plan_attack(world.run, world.config(model=noisy, noise="fresh", eot=2))
    assert (plan.eot, plan.rescore, plan.compact) == (2, 100, False)
    single = plan_attack(world.run, world.config(name="b", model=noisy, noise="fresh", screen=10))
    assert single.screen == 0
    assert "one noisy draw decides each success" in single.notes[0]


class Remembers(nn.Module):
    """Keeps count of its passes in a buffer, as a model does that adapts while it is attacked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.network(images)


class NaNOnDark(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)[:, :10]
        return torch.where(images.flatten(1).amin(1, keepdim=True) < 0.001, torch.nan, logits)


def test_a_model_that_changes_under_attack_or_is_not_finite_on_an_image_is_refused(
    tiny: nn.Module, make_plan: MakePlan
) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = make_plan("Linf", 0.01, ("apgd-ce",))
    with pytest.raises(InputError, match="buffers stay as they are under attack, found passes changed"):
        attack_chunk(Remembers(tiny), images, tiny(images).argmax(1), plan, 0)
    images[2, 0, 0, 0] = 0
    with pytest.raises(InputError, match="m:f: expected finite logits on every image, found NaN"):
        attack_chunk(NaNOnDark(), images, torch.zeros(4, dtype=torch.long), plan, 0)


@pytest.mark.parametrize(("norm", "limit"), [("Linf", 0.5), ("L2", 0.5 * 192**0.5), ("L1", 96.0)])
def test_an_eps_that_reaches_grey_from_everywhere_is_noted(world: World, norm: str, limit: float) -> None:
    assert vacuous_eps(norm, 192) == pytest.approx(limit)
    said = plan_attack(world.run, world.config(norm=norm, eps=1.01 * limit)).notes
    assert [note for note in said if "says nothing" in note]
    assert not plan_attack(world.run, world.config(name="b", norm=norm, eps=0.9 * limit)).notes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": "eot-standard", "attacks": ()}, "noise=fresh for an average"),
        ({"eot": 5}, "noise=fresh for an average"),
        ({"version": "rand", "attacks": (), "noise": "fresh", "eot": 5}, "an average of its own"),
        ({"eps": ["4/255", "4/255"]}, "each eps once"),
        ({"eps": []}, "each eps once"),
        ({"eps": ["4/255", 0]}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(world: World, fields: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        world.config(**fields)


def test_an_eps_list_is_sorted_and_its_largest_is_the_headline(world: World) -> None:
    plan = plan_attack(world.run, world.config(eps=["8/255", "2/255"]))
    assert (plan.smaller_eps, plan.eps) == ((2 / 255,), 8 / 255)
    plan = plan_attack(world.run, world.config(name="e", version="eot-standard", attacks=(), noise="fresh"))
    assert (plan.eot, plan.attacks) == (20, ("apgd-ce", "apgd-t", "fab-t", "square"))
