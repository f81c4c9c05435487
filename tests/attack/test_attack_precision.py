"""Passes in a lower precision decide nothing: what they break is predicted in fp32, and counts by that alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack.kinds import Short
from pydantic import ValidationError
from torch import Tensor, nn

import kapdist.attack.devices as devices
import kapdist.attack.stock as stock_of
from kapdist.attack.chunk import ChunkOutcome, attack_chunk
from kapdist.attack.fill import MOST, rows_within
from kapdist.attack.forms import Forms
from kapdist.attack.graphs import Graphed, sizes_up_to
from kapdist.attack.plan import plan_attack
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, first_difference
from kapdist.run.paths import AttackDir

MakePlan = Callable[..., AttackPlan]
World = Any
EVERY = ("apgd-ce", "apgd-t", "fab-t", "square")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_of, "AutoAttack", Short)


def chunk_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return images, model(images).argmax(1)


def forms_that_say(model: nn.Module, shift: Callable[[Tensor], Tensor]) -> Forms:
    """Return a model whose rough passes say something else, with the gradient of what they should."""
    forms = Forms(model, "bf16")
    forms.rough = lambda images: (logits := model(images)) + shift(logits.detach())
    return forms


def broken(outcome: ChunkOutcome) -> Tensor:
    return torch.stack([attack.broke for attack in outcome.attacks])


def test_a_rough_pass_that_lies_breaks_nothing_and_ends_no_search(
    tiny: nn.Module, make_plan: MakePlan, few_steps: None
) -> None:
    """Every point is said to be wrong, so every one is passed exactly: the outcome is that of exact passes."""
    images, labels = chunk_of(tiny)
    exact = attack_chunk(tiny, images, labels, make_plan("Linf", 0.03, EVERY, compact=True), 2)
    plan = make_plan("Linf", 0.03, EVERY, compact=True, precision="bf16")

    def wrong(logits: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot((logits.argmax(1) + 1) % 10, 10)

    lied_to = attack_chunk(forms_that_say(tiny, wrong), images, labels, plan, 2)
    assert 0 < broken(exact).any(0).sum() < 8
    # Those two, bit by bit; FAB, where it is beyond eps, follows rough logits.
    assert torch.equal(broken(lied_to)[:2], broken(exact)[:2])
    assert torch.equal((tiny(lied_to.adversarial).argmax(1) != labels), broken(lied_to).any(0))


def test_bf16_breaks_what_fp32_confirms(tiny: nn.Module, make_plan: MakePlan, few_steps: None) -> None:
    images, labels = chunk_of(tiny)
    plan = make_plan("Linf", 0.03, EVERY, compact=True, precision="bf16")
    outcome = attack_chunk(tiny, images, labels, plan, 2)
    fell = broken(outcome).any(0)
    assert 0 < fell.sum() < 8
    assert torch.equal(tiny(outcome.adversarial).argmax(1) != labels, fell)
    assert outcome.attacks[0].forwards > 0
    rough = Forms(tiny, "bf16").rough(images)
    assert rough.dtype == torch.bfloat16
    assert torch.allclose(rough.float(), tiny(images), atol=0.05)
    assert torch.equal(Forms(tiny, "bf16")(images), tiny(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "tf32"}, "precision=tf32: expected a GPU for tf32, found device cpu"),
        ({"precision": "bf16"}, "precision=bf16: expected a CPU with AMX or AVX512-BF16 .*, found neither"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(
    world: World, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: False)
    with pytest.raises(InputError, match=message):
        plan_attack(world.run, world.config(**fields))


@pytest.mark.parametrize("fields", [{"noise": "fixed"}, {"compact": False}, {"gradient_of": "m.py:f"}])
def test_a_precision_goes_with_deterministic_attacks_that_confirm(world: World, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="precision of fp32 with noise"):
        world.config(precision="bf16", **fields)


def test_the_precision_is_a_part_of_the_plan_and_fp32_leaves_no_trace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    plain = plan_attack(world.run, world.config(name="plain"))
    rough = plan_attack(world.run, world.config(name="rough", precision="bf16"))
    assert "precision" not in plain.identity()
    assert first_difference(plain.identity(), rough.identity()) == ("precision", "None", "'bf16'")


def test_a_chunk_of_no_size_takes_the_plan_s_that_is_there(world: World) -> None:
    written = plan_attack(world.run, world.config(chunk_size=4, images_per_pass=7))
    assert plan_attack(world.run, world.config(chunk_size=0, images_per_pass=0)) == written
    AttackDir(world.run / "attacks" / "aa").plan.unlink()
    on_a_cpu = plan_attack(world.run, world.config(chunk_size=0))
    assert (on_a_cpu.chunk_size, on_a_cpu.images_per_pass) == (64, 512)


@pytest.mark.parametrize(("budget", "expected"), [(99e6, 64), (129e6, 128), (1e12, MOST), (1, 16)])
def test_as_many_images_fill_a_gpu_as_its_memory_has_room_for(budget: float, expected: int) -> None:
    """A network whose pass takes a megabyte for each image, and five besides."""
    assert rows_within(budget, lambda rows: 5_000_000 + 1_000_000 * rows) == expected


@pytest.mark.parametrize("largest", [1, 2, 7, 64, 100])
def test_a_batch_is_padded_by_less_than_a_third(largest: int) -> None:
    sizes = sizes_up_to(largest)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, largest)
    for rows in range(1, largest + 1):
        size = next(size for size in sizes if size >= rows)
        assert size - rows <= max(1, rows / 3)


@on_a_gpu
def test_graphs_are_the_network_whatever_overtakes_whom(tiny: nn.Module) -> None:
    network = tiny.cuda()
    graphed = Graphed(network, 8)
    first, second = (torch.rand(rows, 3, 8, 8, device="cuda").requires_grad_() for rows in (5, 3))
    logits, others = graphed(first), graphed(second)
    for points, found in ((first, logits), (second, others)):
        expected = network(points)
        assert torch.allclose(found, expected, atol=1e-5)
        gradients = [torch.autograd.grad(out[:, 0].sum(), points)[0] for out in (found, expected)]
        assert torch.allclose(*gradients, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(graphed(first), logits)
        mates = torch.cat([first[:2], torch.rand_like(first[2:])])
        assert torch.equal(graphed(mates)[:2], logits[:2])
