"""Models and settings that would give a number without a meaning are refused, or said to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kapdist.attack.ball import vacuous_eps
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.classifier import check_batches
from kapdist.attack.plan import plan_attack
from kapdist.errors import InputError
from kapdist.kap import KAPConv2d, fold, noise
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.passes import passes_outside

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

class BatchNormed(Model):
    def __init__(self):
        super().__init__()
        self.layers.insert(0, nn.BatchNorm2d(3, track_running_stats=False))

class InPairs(Model):  # each image looks at its neighbour, and so at the order of the batch
    def forward(self, images):
        logits = self.layers(images)
        return logits + logits.roll(1, 0)

class NoisyBatchNormed(BatchNormed):
    def forward(self, images):
        return super().forward(images + 0.02 * torch.randn_like(images))

class NoisyInPairs(InPairs):
    def forward(self, images):
        return super().forward(images * (1 + 0.02 * torch.rand(())))

class OwnGenerator(Model):
    def __init__(self):
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def forward(self, images):
        return super().forward(images + 0.1 * torch.randn(images.shape, generator=self.random))

class Counts(Model):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images * (1 + 0.1 * (self.calls % 2)))

class Squeezes(Model):
    def forward(self, images):
        return self.layers(images).squeeze()

class Channels(Model):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 5))
        self.to(memory_format=torch.channels_last)

class Half(Model):
    def forward(self, images):
        return self.layers(images).bfloat16()
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


@pytest.mark.parametrize("name", ["BatchNormed", "InPairs"])
def test_a_model_whose_predictions_depend_on_the_batch_is_refused(world: World, name: str) -> None:
    (world.folder / "strange.py").write_text(STRANGE)
    words = r"do not depend on the rest of its batch, found logits .* apart, and \d of 6 images in another class"
    with pytest.raises(InputError, match=words):
        plan_attack(world.run, world.config(model={"factory": f"strange.py:{name}"}))


@pytest.mark.parametrize("name", ["NoisyBatchNormed", "NoisyInPairs"])
def test_a_noisy_model_whose_predictions_depend_on_the_batch_is_refused(world: World, name: str) -> None:
    (world.folder / "strange.py").write_text(STRANGE)
    words = r"do not depend on the rest of its batch, found mean logits of 12 noisy passes .* apart, alone and in"
    with pytest.raises(InputError, match=words):
        plan_attack(world.run, world.config(model={"factory": f"strange.py:{name}"}, noise="fresh"))


@pytest.mark.parametrize("name", ["OwnGenerator", "Counts"])
def test_a_noisy_model_whose_draws_no_seed_decides_is_refused(world: World, name: str) -> None:
    """Its verdicts were others at every start, and the gradients of averages those of other draws."""
    (world.folder / "strange.py").write_text(STRANGE)
    with pytest.raises(InputError, match=r"which attacks seed, found logits .* apart in two passes from one seed"):
        plan_attack(world.run, world.config(model={"factory": f"strange.py:{name}"}, noise="fresh"))


def test_a_model_that_squeezes_its_output_is_refused_before_one_image_is_left(world: World) -> None:
    (world.folder / "strange.py").write_text(STRANGE)
    squeezes = {"factory": "strange.py:Squeezes"}
    for mode in ("off", "fresh"):
        with pytest.raises(InputError, match=r"logits \(batch, classes\) = \(1, 5\) of a batch of one .* \(5,\)"):
            plan_attack(world.run, world.config(model=squeezes, noise=mode))


@pytest.mark.parametrize("name", ["Channels", "Half"])
def test_what_batches_round_is_no_dependence_on_them(world: World, name: str) -> None:
    (world.folder / "strange.py").write_text(STRANGE)
    assert plan_attack(world.run, world.config(model={"factory": f"strange.py:{name}"})).deterministic


@pytest.mark.parametrize("mode", ["off", "fixed"])
@pytest.mark.parametrize("folded", [True, False])
def test_averages_and_fixed_noise_do_not_depend_on_the_batch(mode: str, folded: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = KAPConv2d(3, 9, 3, pool_size=3, noise_std=0.1)
        model = nn.Sequential(layer, nn.BatchNorm2d(9), nn.ReLU(), nn.Flatten(), nn.Linear(324, 5)).eval()
    model = fold(model, norms=True).eval() if folded and mode == "off" else model
    with noise(model, mode, seed=1):
        check_batches(model.to(memory_format=torch.channels_last), "here", 8)


class Remembers(nn.Module):
    """Keeps count of its passes in a buffer, as a model does that adapts while it is attacked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.network(images)


class WrongOnce(nn.Module):
    """Answers for another class in one of its passes."""

    def __init__(self, network: nn.Module, number: int) -> None:
        super().__init__()
        self.network, self.number, self.passes = network, number, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        self.passes += 1
        return logits.roll(1, 1) if self.passes == self.number else logits


def test_a_verdict_that_does_not_repeat_refuses_the_plan(tiny: nn.Module, make_plan: MakePlan) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, plan = tiny(images).argmax(1), make_plan("Linf", 1e-6, ("apgd-ce",))
    never = WrongOnce(tiny, 0)
    assert not attack_chunk(never, images, labels, plan, 0).attacks[0].broke.any()
    clean, verdict = 1, never.passes - 1  # the last one predicts the clean images again
    for number in (clean, verdict):
        with pytest.raises(InputError, match=r"verdicts that repeat, .* found 4 of 4 images in another class"):
            attack_chunk(WrongOnce(tiny, number), images, labels, plan, 0)
    assert not attack_chunk(WrongOnce(tiny, 50), images, labels, plan, 0).attacks[0].broke.any()


def test_every_verdict_is_predicted_once_more_and_that_is_counted(tiny: nn.Module, make_plan: MakePlan) -> None:
    seen = [0]
    tiny.register_forward_hook(lambda module, inputs, logits: seen.append(seen.pop() + len(logits)))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, plan = tiny(images).argmax(1), make_plan("Linf", 0.03, ("apgd-ce", "fab-t"))
    seen[0] = 0
    outcome = attack_chunk(tiny, images, labels, plan, 0)
    broken = sum(int(attack.broke.sum()) for attack in outcome.attacks)
    assert broken
    assert seen[0] == passes_outside(plan, 4, broken) + sum(attack.forwards for attack in outcome.attacks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_of_another_precision_are_attacked_as_float32(
    tiny: nn.Module, make_plan: MakePlan, dtype: torch.dtype
) -> None:
    class Cast(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return tiny(images).to(dtype)

    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = make_plan("Linf", 0.1, ("fab-t", "square"), compact=True)
    outcome = attack_chunk(Cast(), images, tiny(images).argmax(1), plan, 0)
    assert outcome.attacks[0].broke.all()


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
    with pytest.raises(InputError, match=r"m:f: .* found NaN or infinity on 1 of 4 images: image 2$"):
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
        ({"version": "eot-standard", "attacks": (), "noise": "off"}, "noise=fresh for an average"),
        ({"eot": 5, "noise": "fixed"}, "noise=fresh for an average"),
        ({"version": "rand", "attacks": (), "noise": "fresh", "eot": 5}, "an average of its own"),
        ({"eps": ["4/255", "4/255"]}, "each once"),
        ({"eps": []}, "each once"),
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
