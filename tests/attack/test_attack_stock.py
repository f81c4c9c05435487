"""The verdicts of a chunk are the library's own, image by image; what the library breaks around it stays whole."""

import sys
from collections.abc import Callable

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from kapdist.attack.chunk import attack_chunk
from kapdist.attack.counted import CountedModel
from kapdist.attack.stock import resolve
from kapdist.errors import InputError
from kapdist.kap import KAPConv2d
from kapdist.records.attack_plan import AttackPlan
from kapdist.rng import derive_seed

MakePlan = Callable[..., AttackPlan]


def chunk_of(model: nn.Module, num_images: int = 4) -> tuple[Tensor, Tensor]:
    images = torch.rand(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return images, labels


@pytest.mark.parametrize(
    ("version", "attacks", "norm", "eps"),
    [
        ("standard", (), "Linf", 0.055),
        ("rand", (), "Linf", 0.04),
        ("custom", ("square", "apgd-ce"), "L2", 2.0),
        ("custom", ("fab-t", "fab", "apgd-dlr"), "Linf", 0.03),
        ("custom", ("apgd-ce",), "L1", 2.0),
    ],
)
def test_verdicts_and_images_equal_the_library_s_own(
    tiny: nn.Module, make_plan: MakePlan, version: str, attacks: tuple, norm: str, eps: float
) -> None:
    images, labels = chunk_of(tiny)
    plan = make_plan(norm, eps, attacks, version)
    outcome = attack_chunk(tiny, images, labels, plan, chunk=2)
    seed = derive_seed(plan.seed, "attack", 2)
    own_list = list(attacks) if version == "custom" else None
    library = AutoAttack(tiny, attacks=own_list, eps=eps, norm=norm, seed=seed, version=version)
    trace = sys.gettrace()
    adversarial, prediction = library.run_standard_evaluation(images, labels, batch_size=len(images))
    sys.settrace(trace)
    broken = torch.stack([attack.broke for attack in outcome.attacks]).any(0)
    correct = tiny(images).argmax(1) == labels
    assert torch.equal(broken, correct & (prediction != labels))
    assert torch.equal(outcome.adversarial, adversarial)
    assert 0 < broken.sum() <= correct.sum()  # an attack that breaks nothing would show nothing


def test_the_callers_random_state_and_trace_function_are_given_back(tiny: nn.Module, make_plan: MakePlan) -> None:
    images, labels = chunk_of(tiny)
    torch.manual_seed(7)
    expected, trace = torch.get_rng_state(), sys.gettrace()
    sys.settrace(watcher := lambda frame, event, argument: None)
    try:
        attack_chunk(tiny, images, labels, make_plan("Linf", 0.02, ("apgd-ce",)), 0)
        assert sys.gettrace() is watcher
    finally:
        sys.settrace(trace)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_chunk_is_a_function_of_its_arguments(tiny: nn.Module, make_plan: MakePlan) -> None:
    images, labels = chunk_of(tiny)
    plan = make_plan("Linf", 0.06, ("apgd-ce",))
    first = attack_chunk(tiny, images, labels, plan, 0).adversarial
    assert not torch.equal(first, images)
    torch.manual_seed(123)
    attack_chunk(tiny, images, labels, plan, 5)
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(attack_chunk(tiny, channels_last, labels, plan, 0).adversarial, first)
    assert not torch.equal(attack_chunk(tiny, images, labels, plan, 1).adversarial, first)


class GlobalNoise(nn.Module):
    """Draws from torch's global generator, as models from elsewhere do, and remembers what it drew."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.drawn = model, []

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(())
        self.drawn.append(noise.item())
        return self.model(images) + 0.0 * noise


def test_a_models_own_draws_never_start_over(tiny: nn.Module, make_plan: MakePlan) -> None:
    noisy = GlobalNoise(tiny)
    images, labels = chunk_of(tiny, 4)
    attack_chunk(noisy, images, labels, make_plan("Linf", 0.001, ("apgd-ce", "apgd-dlr")), 0)
    assert len(noisy.drawn) > 100
    assert len(set(noisy.drawn)) == len(noisy.drawn)


@pytest.mark.parametrize("mode", ["off", "fixed", "fresh"])
def test_the_mode_of_the_noise_is_the_plans(make_plan: MakePlan, mode: str) -> None:
    torch.manual_seed(0)
    layer = KAPConv2d(3, 4, 3, stride=3, pool_size=3, layout="line", noise_std=0.02)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 10)).eval().requires_grad_(False)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, logits: seen.append(logits[:1].clone()))
    images, labels = chunk_of(model, 4)
    plan = make_plan("Linf", 1e-9, ("apgd-ce",), noise=mode)
    runs = []
    for _ in range(2):
        seen.clear()
        attack_chunk(model, images, labels, plan, 0)
        runs.append(torch.cat(seen))
    assert torch.equal(*runs)
    spread = (runs[0][1:50] - runs[0][1]).abs().max()
    assert len(runs[0]) > 50
    assert (spread > 1e-3) == (mode == "fresh")


def test_fewer_classes_than_targets_aim_at_those_that_exist(make_plan: MakePlan) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval().requires_grad_(False)
    images, labels = chunk_of(model, 4)
    names, settings, notes = resolve("custom", ("apgd-t", "fab-t"), "Linf", 0.05, 5)
    assert (settings.apgd_targets, settings.fab_targets) == (4, 4)
    assert notes == ["targeted attacks aim at 4 classes, all there are, not at 9"]
    plan = make_plan("Linf", 0.05, names, num_classes=5)
    assert attack_chunk(model, images, labels, plan, 0).attacks[0].broke.any()


def test_versions_resolve_to_the_library_s_lists() -> None:
    standard, settings, notes = resolve("standard", (), "Linf", 0.1, 10)
    assert standard == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert (settings.apgd_restarts, settings.eot, settings.square_queries, notes) == (1, 1, 5000, [])
    assert resolve("rand", (), "Linf", 0.1, 10)[1].eot == 20
    assert resolve("standard", (), "L1", 0.1, 10)[1].apgd_shrinking_eps
    plus, settings, notes = resolve("plus", (), "Linf", 0.1, 1000)
    assert len(plus) == 6
    assert notes == ["untargeted fab costs a backward pass per class and step: up to 500,000 per image"]


@pytest.mark.parametrize(("version", "num_classes"), [("standard", 3), ("rand", 2)])
def test_too_few_classes_for_a_loss_are_refused(version: str, num_classes: int) -> None:
    with pytest.raises(InputError, match=rf"expected at least . classes for apgd-\w+ .*, found {num_classes}"):
        resolve(version, (), "Linf", 0.1, num_classes)


def test_images_are_counted_both_ways_and_once_per_backward() -> None:
    counted = CountedModel(nn.Flatten(), torch.device("cpu"), 0)
    images = torch.rand(3, 1, 2, 2).requires_grad_()
    logits = counted(images)
    logits.sum().backward(retain_graph=True)
    logits.sum().backward()
    with torch.no_grad():
        counted(images[:2])
    assert (counted.forwards, counted.backwards) == (5, 6)
