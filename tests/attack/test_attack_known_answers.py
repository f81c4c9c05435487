"""Verdicts, norms and passes against answers that are known without an attack."""

from collections.abc import Callable

import pytest
import torch
from pyautoattack.autopgd_base import L1_projection
from torch import Tensor, nn

import kapdist.attack.chunk as chunk_of
from kapdist.attack.ball import LARGEST_ROUNDING, Ball, drop_rounding
from kapdist.attack.chunk import attack_chunk
from kapdist.records.attack_plan import AttackPlan

MakePlan = Callable[..., AttackPlan]


def linear_problem(num_images: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, and images so far from 0 and 1 that the box is never in the way."""
    generator = torch.Generator().manual_seed(5)
    linear = nn.Linear(192, 4)
    linear.weight.data = torch.randn(4, 192, generator=generator) / 4  # margins that cross entropy still sees
    linear.bias.data = torch.zeros(4)
    images = 0.45 + 0.1 * torch.rand(num_images, 3, 8, 8, generator=generator)
    model = nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    return model, images, labels


def exact_radius(model: nn.Module, images: Tensor, labels: Tensor, dual: float) -> Tensor:
    """Distance to the decision boundary: min over classes of margin / dual norm of the weights' difference."""
    weight, logits = model[1].weight.double(), model.double()(images.double())
    model.float()
    margin = logits.gather(1, labels[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], dual, dim=2)
    return (margin / slope.clamp(min=1e-12)).scatter(1, labels[:, None], torch.inf).min(1).values


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1.0), ("L2", 2.0), ("L1", torch.inf)])
def test_verdicts_on_a_linear_model_are_the_exact_ones(make_plan: MakePlan, norm: str, dual: float) -> None:
    model, images, labels = linear_problem()
    radius = exact_radius(model, images, labels, dual)
    correct = model(images).argmax(1) == labels
    assert correct.sum() == len(labels) - 1
    inside = radius[correct].sort().values
    sweep = [float(inside[place : place + 2].mean()) for place in (2, 6)]  # between two images' radii
    assert sweep[-1] < 0.45
    options = {"smaller_eps": sweep[:-1], "screen": 5, "compact": True, "num_classes": 4}
    plan = make_plan(norm, sweep[-1], ("fab-t", "apgd-ce"), **options)
    outcome = attack_chunk(model, images, labels, plan, 0)
    norms = Ball(norm, sweep[-1]).distance(outcome.adversarial, images)
    for eps in sweep:
        assert ((radius - eps).abs() > 0.01 * eps).all()
        broken = torch.stack([attack.broke for attack in outcome.attacks if attack.eps <= eps]).any(0)
        assert torch.equal(broken, correct & (radius < eps))
        assert (norms[broken] <= eps * (1 + 1e-6) + 1e-6).all()


CLOSED_FORM = {  # passes of one image that is never fooled: forward (the verdict's own included), backward
    "apgd-ce": (1 + 5 * 101 + 1, 5 * 101),
    "apgd-t": (1 + 9 * 102 + 1, 9 * 101),
    "fab-t": (1 + 9 * (1 + 1 + 2 * 100 + 1) + 1, 9 * 100),
    "square": (1 + 1 + 5000 + 1 + 1, 0),
}


class Saturated(nn.Module):
    """Always says class 0 and is never fooled, with gradients all the same."""

    def forward(self, images: Tensor) -> Tensor:
        sums = images.flatten(1).mean(1, keepdim=True) * torch.arange(10.0)
        return sums + 100 * nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_passes_of_images_that_are_never_fooled_have_a_closed_form(make_plan: MakePlan, name: str) -> None:
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 0, 1])
    outcome = attack_chunk(Saturated(), images, labels, make_plan("Linf", 0.01, (name,)), 0)
    attack = outcome.attacks[0]
    assert attack.attacked.tolist() == [True, True, False]
    assert not attack.broke.any()
    forwards, backwards = CLOSED_FORM[name]
    assert (attack.forwards, attack.backwards) == (2 * forwards, 2 * backwards)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_image_beyond_eps_is_an_error_and_never_a_success(norm: str) -> None:
    clean = torch.full((1, 3, 8, 8), 0.5)
    step = torch.zeros_like(clean)
    step[0, 0, 0, 0] = 0.1
    ball = Ball(norm, 0.1)
    ball.check("x", clean + step, clean)
    with pytest.raises(RuntimeError, match="beyond eps"):
        ball.check("x", clean + 1.0001 * step, clean)
    with pytest.raises(RuntimeError, match="not finite"):
        ball.check("x", clean + float("nan") * step, clean)
    with pytest.raises(RuntimeError, match=r"outside \[0, 1\]"):
        ball.check("x", clean + 6 * step, clean)


def test_the_norms_are_those_of_the_textbook() -> None:
    clean, found = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    found[0, 0, 0] = torch.tensor([0.3, -0.4])
    values = {norm: Ball(norm, 0).distance(found, clean).item() for norm in ("Linf", "L2", "L1")}
    assert values == pytest.approx({"Linf": 0.4, "L2": 0.5, "L1": 0.7}, rel=1e-7)


def test_the_tolerance_covers_one_float32_rounding_and_no_more() -> None:
    clean = torch.linspace(0, 0.98, 5000)
    rounded = ((clean + 4 / 255).double() - clean.double()).max().item()
    assert rounded > 4 / 255 * (1 + 1e-6)  # a relative 1e-6 alone would refuse what every APGD image does
    assert rounded <= Ball("Linf", 4 / 255).largest_distance(3072) < 4 / 255 + 1e-7


def test_only_a_rounding_outside_the_range_is_brought_back() -> None:
    values = torch.tensor([-1e-8, 1 + 2.0**-23, 0.5, 1.00001, -0.01])
    assert drop_rounding(values).tolist() == [0.0, 1.0, 0.5, values[3].item(), values[4].item()]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.02), ("L2", 0.3), ("L1", 2.0)])
def test_only_a_projection_s_rounding_beyond_eps_is_pulled_back(norm: str, eps: float) -> None:
    random = torch.Generator().manual_seed(0)
    images = 0.45 + 0.1 * torch.rand(4, 3, 8, 8, generator=random)
    delta = torch.randn(images.shape, generator=random)
    shares = torch.tensor([0.9, 1.0, 1 + 2.5e-5, 1.01]).view(-1, 1, 1, 1)
    ball = Ball(norm, eps)
    unit = delta / ball.distance(images + delta, images).float().view(-1, 1, 1, 1)
    found = images + eps * shares * unit
    pulled = ball.pull_back(found, images)
    assert ball.inside(found, images).tolist() == [True, True, False, False]
    assert ball.inside(pulled, images).tolist() == [True, True, True, False]
    assert torch.equal(pulled[[0, 1, 3]], found[[0, 1, 3]])
    assert ball.distance(pulled, images)[2] == pytest.approx(eps, rel=1e-5)
    assert torch.allclose(pulled[2], found[2], rtol=0, atol=1e-4 * eps)


@pytest.mark.parametrize("eps", [0.5, 12.0])
def test_what_the_library_s_projection_leaves_beyond_eps_on_large_images_is_pulled_back(eps: float) -> None:
    random = torch.Generator().manual_seed(0)
    images = (1.4 * torch.rand(4, 3, 224, 224, generator=random) - 0.2).clamp(0, 1)
    start = torch.randn(images.shape, generator=random)  # as APGD in L1 begins
    found = (images + start + L1_projection(images, start, eps)).clamp(0, 1)
    ball = Ball("L1", eps)
    assert (ball.distance(found, images) > eps * (1 + LARGEST_ROUNDING)).any()
    pulled = ball.pull_back(found, images)
    assert ball.inside(pulled, images).all()
    assert (ball.distance(pulled, images) > 0.99 * eps)[ball.distance(found, images) > eps].all()


def test_what_an_attack_rounds_beyond_eps_is_judged_inside_and_what_is_further_out_is_an_error(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square in L1 does it now and then, and hours of work ended with it."""
    model, images, labels = linear_problem(3)
    labels = model(images).argmax(1)
    radius = exact_radius(model, images, labels, 2.0)
    eps = radius.max().item() * 1.1
    slope = (model[1].weight[:, None] - model[1].weight[None])[labels].flatten(1).view(3, 4, 3, 8, 8)
    nearest = (model(images).gather(1, labels[:, None]) - model(images)) / slope.flatten(2).norm(dim=2).clamp(1e-9)
    target = nearest.scatter(1, labels[:, None], torch.inf).argmin(1)
    step = -slope[torch.arange(3), target]
    step = step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    plan = make_plan("L2", eps, ("square",), num_classes=4)
    for share, said in ((1 + 1e-4, None), (1.01, "beyond eps")):
        monkeypatch.setattr(chunk_of, "perturb", lambda library, name, x, y, share=share: x + share * eps * step)
        if said:
            with pytest.raises(RuntimeError, match=said):
                attack_chunk(model, images, labels, plan, 0)
        else:
            outcome = attack_chunk(model, images, labels, plan, 0)
            assert outcome.attacks[0].broke.all()
            assert (outcome.attacks[0].norm <= Ball("L2", eps).largest_distance(192)).all()
