"""TRADES, MART, weight perturbation and N-FGSM against their papers' formulas, written down in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from in_memory import CLASSES, SIDE, batches, make_config, make_job, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist.plan.training import make_plan
from kapdist.train import awp
from kapdist.train.adversarial import Part
from kapdist.train.job import Job
from kapdist.train.loop import describe, take_part, train_step
from kapdist.train.mart import margin, mart
from kapdist.train.trades import divergence

NUM_IMAGES = 12


def small() -> nn.Module:
    """Two layers whose weights are perturbed, a norm that must see each batch by itself, and biases."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(6 * (SIDE - 2) ** 2, CLASSES),
    )
    model = nn.Sequential(*layers).train()
    model[1].weight.data.uniform_(0.5, 2)
    model[1].running_mean.uniform_(-1, 1)
    return model


def job_of(told: dict[str, Any], smoothing: float = 0.0, **train: Any) -> Job:
    return make_job(make_config({"eps": 0.05} | told, {"label_smoothing": smoothing}, **train), small(), NUM_IMAGES)


def attacked_parts(job: Job) -> list[Part]:
    """The parts of the first step as a step of the training attacks them."""
    source = batches(job, *pictures(NUM_IMAGES), 1)
    return [job.adversary.attack(take_part(job, batch, 0), 0, measure=False) for batch in source]


def kl(clean: Tensor, adversarial: Tensor) -> Tensor:
    p, q = clean.softmax(1), adversarial.softmax(1)
    return (p * (p / q).log()).sum(1)


def published(mode: str, model: nn.Module, part: Part, beta: float, smoothing: float) -> Tensor:
    """The loss of a part as the paper has it, in probabilities and float64, summed over images."""
    target = F.one_hot(part.labels, CLASSES).double()
    target = part.share * target + (1 - part.share) * target.flip(0)
    target = (1 - smoothing) * target + smoothing / CLASSES
    if mode == "pgd":
        return -(target * model(part.adversarial.double()).softmax(1).log()).sum()
    clean, adversarial = model(part.images.double()), model(part.adversarial.double())
    if mode == "trades":
        return -(target * clean.softmax(1).log()).sum() + beta * kl(clean, adversarial).sum()
    q = adversarial.softmax(1)
    own = F.one_hot(part.labels, CLASSES).bool()
    wrong = q.masked_fill(own, 0).amax(1)
    boosted = -(target * q.log()).sum(1) - (1 - wrong).log()
    doubt = 1 - clean.softmax(1)[own]
    return (boosted + beta * kl(clean, adversarial) * doubt).sum()


def loss_and_gradients(model: nn.Module, told: dict, parts: list[Part], smoothing: float) -> list[Tensor]:
    """Of the mean over the batch: the loss, then the gradient of each parameter, all float64."""
    loss = sum(published(told["mode"], model, part, told.get("beta", 0), smoothing) for part in parts) / NUM_IMAGES
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


TRADES = {"mode": "trades", "steps": 3, "beta": 6.0}
MART = {"mode": "mart", "steps": 3, "beta": 5.0}


@pytest.mark.parametrize("told", [TRADES, MART], ids=["trades", "mart"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_a_step_is_the_paper_s(told: dict, accumulation_steps: int, soft: bool) -> None:
    """Loss and gradient; label smoothing is the cross-entropy's, mixed labels are trades' alone.

    Attacked with the batch's own statistics, since the running ones are others after a first part.
    """
    smoothing = 0.1 if soft else 0.0
    mixing = {"mixup_alpha": 1.0} if soft and told["mode"] == "trades" else {}
    job = job_of(told | {"statistics": "train"}, smoothing, accumulation_steps=accumulation_steps, **mixing)
    parts, exact = attacked_parts(job), copy.deepcopy(job.engine.module).double()
    loss, *by_hand = loss_and_gradients(exact, told, parts, smoothing)
    before = [parameter.detach().clone() for parameter in job.engine.module.parameters()]
    train_step(job, batches(job, *pictures(NUM_IMAGES), 1), 0, measure=False)
    assert job.meter.mean() == pytest.approx(loss.item(), rel=1e-6)
    for own, old, gradient in zip(job.engine.module.parameters(), before, by_hand, strict=True):
        torch.testing.assert_close((old - own).double() / job.plan.lr(0), gradient, rtol=1e-4, atol=2e-6)
    for name, value in exact.named_buffers():  # clean images first, then adversarial ones
        torch.testing.assert_close(
            job.engine.module.get_buffer(name).double(), value.double(), rtol=1e-5, atol=1e-6
        )


def test_trades_climbs_its_divergence_from_a_gaussian_start() -> None:
    """L2, whose steps are as long as the gradient's direction says: signs of float32 may differ from float64's."""
    job = job_of(TRADES | {"norm": "L2", "eps": 2})
    part = take_part(job, next(batches(job, *pictures(NUM_IMAGES), 1)), 0)
    start = job.adversary.start(part, 0)
    exact = copy.deepcopy(job.engine.module).double().eval()
    images, points = part.images.double(), start.adversarial.double()
    clean = exact(images).detach()
    for _ in range(3):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(kl(clean, exact(points)).sum(), points)
        gradient /= gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = points.detach() + 2 * 2.5 / 3 * gradient - images
        delta *= (2 / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        points = (images + delta).clamp(0, 1)
    found = job.adversary.climb(start, 0).adversarial
    torch.testing.assert_close(found.double(), points, rtol=0, atol=2e-3)
    assert (found - part.images).flatten(1).norm(dim=1).min() > 0.5


def test_a_gaussian_start_has_its_deviation_and_its_image() -> None:
    job = job_of(TRADES)
    grey = torch.full((NUM_IMAGES, 3, SIDE, SIDE), 0.5)
    part = Part(grey, torch.zeros(NUM_IMAGES, dtype=torch.int64), 1.0, list(range(NUM_IMAGES)))
    delta = job.adversary.start(part, 0).adversarial - grey
    assert delta.std().item() == pytest.approx(0.001, rel=0.05)
    assert delta.flatten(1).double().kthvalue(96).values.abs().max() < 3e-4, "the median is the image"
    assert delta.abs().max() > 0.002
    turned = part._replace(ids=part.ids[::-1])
    assert torch.equal(job.adversary.start(turned, 0).adversarial.flip(0) - grey, delta)
    assert not torch.equal(job.adversary.start(part, job.plan.steps_per_epoch).adversarial - grey, delta)


def test_mart_s_attack_is_pgd_s() -> None:
    points = []
    for told in (MART, {"mode": "pgd", "steps": 3, "start": "gaussian"}):
        points.append(attacked_parts(job_of(told))[0].adversarial)
    assert torch.equal(*points)


def test_mart_is_finite_where_probabilities_are_zero_and_one() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0], [0.0, 200.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
    loss = mart(cross_entropy, logits.flip(0), logits, labels, 5.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(margin(logits, labels), torch.tensor([0.0, 200.0 - torch.tensor(2.0).log()]))


def test_a_divergence_is_that_of_the_stock_library() -> None:
    clean, adversarial = torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(1)) * 5
    stock = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(divergence(clean, adversarial), stock, rtol=1e-5, atol=1e-6)
    assert divergence(clean, clean).abs().max() == 0


AWP = [
    {"mode": "pgd", "steps": 2, "awp_gamma": 0.2},
    TRADES | {"awp_gamma": 0.2},
    MART | {"awp_gamma": 0.2},
]


@pytest.mark.parametrize("told", AWP, ids=[told["mode"] for told in AWP])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_weights_are_perturbed_layer_by_layer_and_come_back_to_the_bit(
    told: dict, accumulation_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """w + v while gradients are taken, w when the optimizer steps; the update is that of the gradient at w + v."""
    job = job_of(told, accumulation_steps=accumulation_steps)
    model, parts = job.engine.module, attacked_parts(job)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    exact = copy.deepcopy(model).double()
    _, *gradients = loss_and_gradients(exact, told, parts, 0.0)
    with torch.no_grad():
        for weight, gradient in zip(exact.parameters(), gradients, strict=True):
            if weight.dim() > 1:
                weight += 0.2 * weight.norm() * gradient / gradient.norm()
    for name, buffer in exact.named_buffers():
        buffer.copy_(model.get_buffer(name))  # of the norms, what the first pass left does not count
    loss, *at_the_worst = loss_and_gradients(exact, told, parts, 0.0)

    seen: dict[str, list[Tensor]] = {}
    for name in ("backward", "descend"):
        watch(job, name, seen, monkeypatch)
    train_step(job, batches(job, *pictures(NUM_IMAGES), 1), 0, measure=False)

    for moved, reference, old in zip(seen["backward"], exact.parameters(), before, strict=True):
        torch.testing.assert_close(moved.double(), reference.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(moved, old) == (old.dim() == 1), "norms and biases stay"
    assert all(torch.equal(*pair) for pair in zip(seen["descend"], before, strict=True))
    assert job.meter.mean() == pytest.approx(loss.item(), rel=1e-5)
    for own, old, gradient in zip(model.parameters(), before, at_the_worst, strict=True):
        torch.testing.assert_close((old - own).double() / job.plan.lr(0), gradient, rtol=1e-4, atol=1e-5)
    for name, value in exact.named_buffers():
        torch.testing.assert_close(model.get_buffer(name).double(), value.double(), rtol=1e-4, atol=1e-5)


def watch(job: Job, name: str, seen: dict[str, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the weights that the engine finds at its last call of a method."""
    method = getattr(job.engine, name)

    def watched(*words: Any) -> Any:
        seen[name] = [parameter.detach().clone() for parameter in job.engine.module.parameters()]
        return method(*words)

    monkeypatch.setattr(job.engine, name, watched)


def test_weights_are_not_perturbed_before_their_epoch_nor_by_no_gradient() -> None:
    told = {"mode": "pgd", "awp_gamma": 0.01, "awp_warmup_epochs": 2}
    settings = make_plan(make_config(told), 36, 1).adversarial  # 3 steps per epoch
    assert [settings.perturbs_weights(step) for step in (0, 5, 6, 11)] == [False, False, True, True]
    weight = torch.ones(2, 3)
    for gradient in (torch.zeros(2, 3), torch.full((2, 3), torch.nan), torch.full((2, 3), torch.inf)):
        assert torch.equal(awp.worst_step(weight, gradient, 0.1), torch.zeros(2, 3))


def test_weights_come_back_after_an_error() -> None:
    weights = [torch.rand(3, 4), torch.rand(5)]
    before = [weight.clone() for weight in weights]
    steps = [torch.full_like(weight, 1e8) for weight in weights]  # adding and taking off again would lose all bits
    with awp.moved(weights, steps):
        assert torch.equal(weights[0], before[0] + 1e8)
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    with pytest.raises(KeyError), awp.moved(weights, steps):
        raise KeyError
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))


@pytest.mark.parametrize("magnitude", [None, 3.0])
def test_n_fgsm_steps_from_a_larger_ball_and_is_not_projected(magnitude: float | None) -> None:
    k, eps = magnitude or 2.0, 0.05
    told: dict[str, Any] = {"mode": "fast", "start": "n-fgsm"}
    job = job_of(told if magnitude is None else told | {"start_magnitude": magnitude})
    part = take_part(job, next(batches(job, *pictures(NUM_IMAGES), 1)), 0)
    start = job.adversary.start(part, 0).adversarial
    inner = (part.images > k * eps) & (part.images < 1 - k * eps)
    eta = (start - part.images)[inner] / eps
    assert eta.abs().max() <= k * (1 + 1e-5)
    assert eta.mean().abs() < 0.15
    assert (eta**2).mean().item() == pytest.approx(k**2 / 3, rel=0.1), "uniform"
    assert ((start >= 0) & (start <= 1)).all()

    exact = copy.deepcopy(job.engine.module).double().eval()
    points = start.double().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(exact(points), part.labels, reduction="sum"), points)
    expected = (start + eps * gradient.sign().float()).clamp(0, 1)
    found = job.adversary.attack(part, 0, measure=False).adversarial
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert (found - part.images).abs().max() > k * eps, "nothing takes it back to eps"


def test_what_is_measured_of_a_divergence_is_the_model_s_at_rest() -> None:
    job = job_of(TRADES)
    (part,) = attacked_parts(job)
    still = copy.deepcopy(job.engine.module).double().eval()
    expected = kl(still(part.images.double()), still(part.adversarial.double())).mean().item()
    result = train_step(job, batches(job, *pictures(NUM_IMAGES), 1), 0, measure=True)
    assert describe(job, result, 1)["divergence"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("told", [TRADES | {"awp_gamma": 0.01}, MART], ids=["trades-awp", "mart"])
def test_a_plan_counts_the_graphs_of_a_compiled_model(told: dict) -> None:
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []
    job = job_of(told | {"statistics": "eval"}, batch_size=12)
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward  # noqa: E731
    compiled = torch.compile(job.engine.module, dynamic=False, backend=backend)
    job.engine.alone = job.engine.network = compiled
    source = batches(job, *pictures(NUM_IMAGES), 3)
    for step in range(3):
        train_step(job, source, step, measure=True)
    assert 2 < len(graphs) <= job.plan.num_graphs


def test_pgd_moves_where_a_divergence_is_tiny() -> None:
    """The slope near the start is a thousandth of a loss's: float32 still has its direction."""
    job = job_of(TRADES)
    (part,) = attacked_parts(job)
    assert ((part.adversarial - part.images).abs().amax((1, 2, 3)) > 0.04).all()
