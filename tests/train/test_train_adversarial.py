"""Adversarial training against closed forms, and against the published algorithms written down by hand."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from in_memory import CLASSES, SIDE, batches, linear, make_config, make_job, pictures, pixels
from results import numbers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from kapdist import kap
from kapdist.attack.ball import Ball
from kapdist.config import Config, flatten
from kapdist.config.file import load_config
from kapdist.data.beton.layout import open_beton
from kapdist.errors import InputError
from kapdist.forecast.gather import measured_rate
from kapdist.forecast.training import Traffic, in_a_step
from kapdist.kap import KAPConv2d
from kapdist.models import MODELS
from kapdist.plan.training import make_plan
from kapdist.run.paths import RunDir
from kapdist.train.loop import describe, train_step
from kapdist.train.pgd import pgd, random_start

ROUNDING = 2.0**-24  # half the spacing of float32 below 1
NORMS = {"Linf": 8 / 255, "L2": 0.5}


def distance(points: Tensor, images: Tensor, norm: str) -> Tensor:
    delta = (points.double() - images.double()).flatten(1)
    return torch.linalg.vector_norm(delta, math.inf if norm == "Linf" else 2, dim=1)


def two_classes(weight: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of logits (0, weight . x): its gradient is along the weight, away from the label."""

    def loss(points: Tensor) -> Tensor:
        score = points.flatten(1) @ weight
        return F.cross_entropy(torch.stack([torch.zeros_like(score), score], 1), labels, reduction="sum")

    return loss


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_on_a_linear_model_is_the_closed_form_at_every_step(norm: str, steps: int) -> None:
    images, labels = pictures(10)[0], torch.arange(10) % 2
    images = images if norm == "Linf" else 0.3 + 0.4 * images  # the box bends the way of L2
    weight = torch.randn(images[0].numel(), generator=torch.Generator().manual_seed(2)) / 10
    away = (1 - 2 * labels).view(-1, 1, 1, 1) * weight.view(1, *images.shape[1:])
    eps = NORMS[norm]
    step_size = 0.4 * eps
    found = pgd(two_classes(weight, labels), Ball(norm, eps), images, images, step_size, steps)
    if norm == "Linf":
        way = min(steps * step_size, eps) * away.sign()
    else:
        way = min(steps * step_size, eps) * away / weight.norm()
    torch.testing.assert_close(found, (images + way).clamp(0, 1), rtol=0, atol=2e-7)


def curved_loss(points: Tensor) -> Tensor:
    mixing = torch.randn(3 * SIDE**2, 3 * SIDE**2, generator=torch.Generator().manual_seed(4))
    return (points.flatten(1) @ mixing).sin().sum()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outside", [0.0, 0.2])
def test_nothing_leaves_the_ball_nor_the_box(norm: str, outside: float) -> None:
    """Images that input noise took out of [0, 1] are let go no further out."""
    images, eps = pictures(10)[0], NORMS[norm]
    images = images + outside * (images - 0.5)
    ball = Ball(norm, eps)
    start = random_start(ball, images, 0, 0, range(10))
    for points in (start, *(pgd(curved_loss, ball, images, start, 0.7 * eps, steps) for steps in (1, 5))):
        assert distance(points, images, norm).max() <= eps * (1 + 1e-6) + ROUNDING
        assert (points >= images.clamp(max=0)).all()
        assert (points <= images.clamp(min=1)).all()
        assert distance(points, images, norm).min() > eps / 10, "and they do move"


def test_fgsm_is_one_step_of_pgd_from_the_image() -> None:
    images, labels = pictures(6)
    model, eps = linear(), 8 / 255
    points = images.clone().requires_grad_()
    F.cross_entropy(model(points), labels).backward()
    fgsm = (images + eps * points.grad.sign()).clamp(0, 1)
    loss = lambda x: F.cross_entropy(model(x), labels, reduction="sum")  # noqa: E731
    torch.testing.assert_close(pgd(loss, Ball("Linf", eps), images, images, eps, 1), fgsm, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_belongs_to_its_image_and_epoch(norm: str) -> None:
    images = pictures(9)[0]

    def starts(ids: list[int], epoch: int = 0, seed: int = 0) -> Tensor:
        return random_start(Ball(norm, NORMS[norm]), images[ids], seed, epoch, ids)

    whole = starts(list(range(9)))
    assert torch.equal(starts([7, 2]), whole[[7, 2]])
    striped = random_start(
        Ball(norm, NORMS[norm]), images.contiguous(memory_format=torch.channels_last), 0, 0, range(9)
    )
    assert torch.equal(striped, whole)
    assert not torch.isclose(starts([0]), starts([0], epoch=1)).all()
    assert not torch.isclose(starts([0]), starts([0], seed=1)).all()
    assert len({start.sum().item() for start in starts([0] * 1 + [1, 2])}) == 3


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_uniform_in_the_ball(norm: str) -> None:
    grey = torch.full((400, 3, 2, 2), 0.5)
    radii = distance(random_start(Ball(norm, 0.2), grey, 0, 0, range(400)), grey, norm) / 0.2
    share = radii**12  # of the ball's volume within each radius: uniform on [0, 1] whatever the norm
    assert abs(share.mean() - 1 / 2) < 0.05
    assert abs((share**2).mean() - 1 / 3) < 0.05


def test_gradients_that_fp16_lost_move_nothing() -> None:
    images = pictures(2)[0]
    for norm, eps in NORMS.items():
        gradient = torch.zeros_like(images)
        gradient[0] = torch.nan
        gradient[1, 0] = torch.inf
        assert torch.equal(Ball(norm, eps).ascend(images, images, gradient, eps), images)


class Noisy(nn.Module):
    """Norms, dropout and activation noise: all that an attack could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = KAPConv2d(3, 9, 3, pool_size=3, noise_std=0.3)
        self.norm = nn.BatchNorm2d(9)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(9 * (SIDE - 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.norm(self.conv(x)).relu()).flatten(1))


def noisy() -> nn.Module:
    torch.manual_seed(0)
    model = Noisy().train()
    kap.seed_noise(model, 5)
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.5, 2)
    return model


def fgsm_of(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    points = images.clone().requires_grad_()
    F.cross_entropy(model(points), labels).backward()
    return (images + eps * points.grad.sign()).clamp(0, 1)


@pytest.mark.parametrize("statistics", ["eval", "train"])
@pytest.mark.parametrize("noise", ["fresh", "off"])
def test_an_attack_sees_the_model_in_its_mode_and_leaves_it_alone(statistics: str, noise: str) -> None:
    images, labels = pictures(12)
    model, eps = noisy(), 8 / 255
    told = {"mode": "pgd", "steps": 1, "step_size": eps, "eps": eps, "random_start": False}
    job = make_job(make_config(told | {"statistics": statistics, "noise": noise}), model, 12)
    reference = copy.deepcopy(model).train(statistics == "train")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streams = kap.noise_state(model), torch.get_rng_state()

    part = next(take_parts(job, images, labels))
    found = job.adversary.attack(part, 0, measure=False).adversarial

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert model.norm.track_running_stats
    if statistics == "eval":
        assert torch.equal(torch.get_rng_state(), streams[1]), "no dropout"
    if noise == "off":
        assert equal_streams(kap.noise_state(model), streams[0])
    torch.set_rng_state(streams[1])
    with kap.noise(reference, noise):
        assert torch.equal(found, fgsm_of(reference, images, labels, eps))


def take_parts(job, images: Tensor, labels: Tensor):
    from kapdist.train.loop import take_part

    return (take_part(job, batch, 0) for batch in batches(job, images, labels, 1))


def equal_streams(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fixed_noise_is_one_draw_per_step_and_takes_nothing_from_the_stream() -> None:
    images, labels = pictures(12)
    model = noisy()
    job = make_job(make_config({"mode": "fast", "noise": "fixed"}), model, 12)
    seen: list[Tensor] = []
    model.conv.register_forward_hook(lambda module, given, z: seen.append(z - plain(module, given[0])))
    before = kap.noise_state(model)
    part = next(take_parts(job, images, labels))
    for step in (0, 0, 1):
        job.adversary.attack(part, step, measure=False)
    assert equal_streams(kap.noise_state(model), before)
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
    assert not torch.allclose(seen[0], seen[2], atol=1e-2)
    assert seen[0].std() > 0.05


def plain(module: KAPConv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, *module.averaged_parameters())


def test_measuring_changes_nothing_and_counts_what_it_says() -> None:
    images, labels = pictures(12)
    weights = []
    for every in (False, True):
        model = noisy()
        job = make_job(make_config({"mode": "pgd", "steps": 2, "eps": 0.1}), model, 12)
        source = batches(job, images, labels, 3)
        for step in range(2):
            train_step(job, source, step, measure=every)
            job.adversary.describe(step + 1) if every else None
        still = copy.deepcopy(model).eval()
        result = train_step(job, source, 2, measure=True)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(*weights)
    values = describe(job, result, 3)
    with kap.noise(still, "off"):
        expected = (still(images).argmax(1) == labels).double().mean().item()
    assert values["clean_accuracy"] == expected
    assert 0 <= values["adversarial_accuracy"] <= 1
    assert values["adversarial_loss"] > 0
    assert values["eps"] == 0.1


def test_the_size_grows_by_step() -> None:
    config = make_config({"mode": "pgd", "steps": 5, "eps": 0.1, "eps_warmup_epochs": 2})
    settings = make_plan(config, 48, 1).adversarial  # 4 steps per epoch
    assert [round(settings.eps(step), 6) for step in range(10)] == [
        0.0125, 0.025, 0.0375, 0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1, 0.1,
    ]  # fmt: skip
    assert settings.step_size(3) == pytest.approx(2.5 * 0.05 / 5)
    assert make_plan(make_config({"mode": "fast"}), 48, 1).adversarial.step_size(0) == pytest.approx(1.25 * 4 / 255)
    assert make_plan(make_config({"mode": "free", "eps": 0.1}), 48, 1).adversarial.step_size(0) == 0.1
    assert make_plan(make_config({"mode": "off"}), 48, 1).adversarial is None


def soft_loss(weight: Tensor, bias: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    return -(targets * (images.flatten(1) @ weight.T + bias).log_softmax(1)).sum(1).mean()


def by_hand(images: Tensor, targets: Tensor, lr: float, told: dict) -> Tensor:
    """The weights after one step of plain descent from `linear`, in float64, as the papers write it."""
    layer = linear()[1].double()
    weight, bias = layer.weight, layer.bias
    images, targets, eps = images.double(), targets.double(), told["eps"]
    points = images.clone()
    share = told.get("clean_share", 0.0)
    if told["mode"] == "pgd":
        for _ in range(told["steps"]):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(soft_loss(weight, bias, points, targets), points)
            points = clip(points.detach() + told["step_size"] * gradient.sign(), images, eps)
    for _ in range(told.get("replays", 1)):
        points = points.detach().requires_grad_()
        loss = share * soft_loss(weight, bias, images, targets)
        loss = loss + (1 - share) * soft_loss(weight, bias, points, targets)
        by_weight, by_bias, by_image = torch.autograd.grad(loss, (weight, bias, points))
        points = clip(points.detach() + eps * by_image.sign(), images, eps)
        weight = (weight - lr * by_weight).detach().requires_grad_()
        bias = (bias - lr * by_bias).detach().requires_grad_()
    return torch.cat([weight.flatten(), bias])


def clip(points: Tensor, images: Tensor, eps: float) -> Tensor:
    return points.clamp(images - eps, images + eps).clamp(0, 1)


PGD = {"mode": "pgd", "steps": 3, "eps": 0.05, "step_size": 0.02, "random_start": False}
FREE = {"mode": "free", "replays": 3, "eps": 0.05, "random_start": False}


@pytest.mark.parametrize("told", [PGD, PGD | {"clean_share": 0.3}, FREE, FREE | {"clean_share": 0.5}])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_a_step_is_the_papers(told: dict, accumulation_steps: int, soft: bool) -> None:
    """Free is algorithm 1 of Shafahi 2019 from zero; label smoothing and Mixup make soft labels."""
    images, labels = pictures(12)
    smoothing = 0.1 if soft else 0.0
    config = make_config(told, {"label_smoothing": smoothing}, accumulation_steps=accumulation_steps)
    job = make_job(config, linear(), 12)
    train_step(job, batches(job, images, labels, 1), 0, measure=False)
    targets = (1 - smoothing) * F.one_hot(labels, CLASSES) + smoothing / CLASSES
    found = torch.cat([value.flatten() for value in job.engine.module.parameters()])
    expected = by_hand(images, targets, job.plan.lr(0), told)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_mixed_labels_are_attacked_as_mixed() -> None:
    images, labels = pictures(12)
    job = make_job(make_config(PGD, mixup_alpha=1.0), linear(), 12)
    train_step(job, batches(job, images, labels, 1), 0, measure=False)
    part = next(take_parts(job, images, labels))
    assert 0 < part.share < 1
    hot = F.one_hot(labels, CLASSES)
    targets = part.share * hot + (1 - part.share) * hot.flip(0)
    found = torch.cat([value.flatten() for value in job.engine.module.parameters()])
    torch.testing.assert_close(
        found.double(), by_hand(part.images, targets, job.plan.lr(0), PGD), rtol=0, atol=2e-6
    )


def test_free_once_from_zero_is_plain_training_to_the_bit() -> None:
    images, labels = pictures(12)
    weights = []
    for told in ({"mode": "off"}, {"mode": "free", "replays": 1, "random_start": False}):
        model = noisy()
        job = make_job(make_config(told, {"momentum": 0.9}), model, 12)
        source = batches(job, images, labels, 3)
        for step in range(3):
            train_step(job, source, step, measure=step == 2)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("told", [{"mode": "fast"}, {"mode": "free"}, {"mode": "mart", "awp_gamma": 0.1}])
def test_half_precision_trains_close_to_fp32(precision: str, told: dict) -> None:
    images, labels = pictures(12)
    weights = []
    for chosen in ("fp32", precision):
        job = make_job(make_config(told | {"eps": 0.05}), linear(), 12, precision=chosen)
        if chosen == "fp16":
            job.engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        source = batches(job, images, labels, 2)
        assert not any(train_step(job, source, step, measure=True).skipped for step in range(2))
        weights.append(torch.cat([value.flatten() for value in job.engine.module.parameters()]))
    start = torch.cat([value.flatten() for value in linear().parameters()])
    assert (weights[1] - weights[0]).norm() < 0.05 * (weights[0] - start).norm()


def test_two_ranks_start_alike_exchange_once_and_agree_between_engines(run_ranks: Callable) -> None:
    program = Path(__file__).with_name("adversarial_program.py")
    ends = run_ranks([str(program)], 2, timeout=120)
    assert [end.code for end in ends] == [0, 0], "\n".join(end.output for end in ends)


ALL_ON = ["adversarial.eps=8/255", "train.log_every_steps=2"]
MIXED = ["train.mixup_alpha=0.2", "adversarial.clean_share=0.3"]
TRADES_AWP = ["adversarial.mode=trades", "adversarial.awp_gamma=0.01", "adversarial.awp_warmup_epochs=0.5"]
RUNS = {
    "pgd": (2, [*MIXED, "adversarial.mode=pgd", "adversarial.steps=2", "adversarial.eps_warmup_epochs=1"]),
    "free": (1, [*MIXED, "adversarial.mode=free", "adversarial.replays=2"]),
    "trades-awp": (2, [*TRADES_AWP, "adversarial.steps=2", "train.cutmix_alpha=1", "model.dropout=0.1"]),
    "mart": (1, ["adversarial.mode=mart", "adversarial.steps=2", "adversarial.statistics=train"]),
    "n-fgsm": (1, ["adversarial.mode=fast", "adversarial.start=n-fgsm", "model.dropout=0.1"]),
}


@pytest.mark.parametrize(("world_size", "words"), RUNS.values(), ids=RUNS)
def test_a_run_continued_is_bitwise_the_whole(
    tiny_config: Path, run_ranks: Callable, world_size: int, words: list[str]
) -> None:
    """What a kill after step 5 leaves: its checkpoint, and metrics up to some later step."""
    command = ["-m", "kapdist.cli", "train", "tiny.yaml", *ALL_ON, *words]
    command += ["train.checkpoint_every_steps=5", "train.keep_checkpoints=9"]
    assert all(end.code == 0 for end in run_ranks(command, world_size))
    whole, cut = (RunDir(tiny_config.parent / folder / "tiny") for folder in ("runs", "cut"))
    shutil.copytree(whole.root, cut.root)
    for path in (cut.done, cut.weights, cut.best_weights):
        path.unlink()
    shutil.rmtree(cut.checkpoint(10))

    ends = run_ranks([*command, "runs_dir=cut"], world_size)
    assert all(end.code == 0 for end in ends), ends
    assert "step-000000005" in ends[0].output
    first, second = load_file(whole.weights), load_file(cut.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert numbers(whole) == numbers(cut)
    trained = [line for line in numbers(whole) if line["kind"] == "train"]
    assert all(
        {"eps", "adversarial_loss", "clean_accuracy", "adversarial_accuracy"} <= set(line) for line in trained
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mode=pgd", "eps=-1/255"], "greater than 0"),
        (["mode=pgd", "eps=8"], "eps of at most 1 with Linf"),
        (["mode=pgd", "steps=0"], "greater than or equal to 1"),
        (["mode=fast", "steps=3"], "steps with mode pgd, trades or mart only"),
        (["mode=pgd", "replays=2"], "replays with mode free only"),
        (["mode=free", "replays=0"], "greater than or equal to 1"),
        (["mode=free", "statistics=train"], "statistics with mode pgd, fast, trades or mart only"),
        (["mode=free", "noise=off"], "noise with mode pgd, fast, trades or mart only"),
        (["mode=free", "awp_gamma=0.01"], "awp_gamma with mode pgd, fast, trades or mart only"),
        (["mode=pgd", "awp_gamma=-1"], "greater than or equal to 0"),
        (["mode=pgd", "beta=6"], "beta with mode trades or mart only"),
        (["mode=trades", "beta=0"], "greater than 0"),
        (["mode=mart", "clean_share=0.5"], "clean_share with mode pgd, fast or free only"),
        (["mode=trades", "random_start=false"], "random_start with mode trades"),
        (["mode=pgd", "random_start=false", "start=uniform"], "start with random_start only"),
        (["mode=pgd", "start=n-fgsm"], "start n-fgsm with mode fast only"),
        (["mode=free", "start=gaussian"], "start gaussian with mode pgd, trades or mart only"),
        (["mode=fast", "start=uniform", "start_magnitude=3"], "start_magnitude with start n-fgsm only"),
        (["mode=pgd", "clean_share=1"], "less than 1"),
        (["mode=awp"], "'mart'"),
        (["mode=pgd", "norm=L1"], "'L2'"),
        (["mode=pgd", "step_size=0"], "greater than 0"),
        (["mode=pgd", "epsilon=4/255"], "nearest: adversarial.eps"),
    ],
)
def test_wrong_input_names_the_key(tiny_config: Path, words: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, tiny_config, [f"adversarial.{word}" for word in words])
    assert expected in str(caught.value)
    assert "adversarial" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["eps_warmup_epochs", "awp_warmup_epochs"])
def test_a_warm_up_longer_than_the_training_is_refused(tiny_config: Path, key: str) -> None:
    words = ["adversarial.mode=fast", f"adversarial.{key}=3"]
    with pytest.raises(InputError, match=rf"adversarial.{key}: expected at most train.epochs = 2, found 3"):
        make_plan(load_config(Config, tiny_config, [*words, "train.epochs=2"]), 130, 1)


@pytest.mark.parametrize("key", ["mixup_alpha", "cutmix_alpha"])
def test_mart_takes_no_mixed_labels(tiny_config: Path, key: str) -> None:
    with pytest.raises(InputError, match=r"mode mart without train.mixup_alpha and train.cutmix_alpha"):
        load_config(Config, tiny_config, ["adversarial.mode=mart", f"train.{key}=0.2"])


def test_off_may_be_written_as_yaml_reads_it(tiny_config: Path) -> None:
    config = load_config(Config, tiny_config, ["adversarial.mode=off", "adversarial.noise=off"])
    assert (config.adversarial.mode, config.adversarial.noise) == ("off", "off")


PASSES = [
    ({"mode": "pgd", "steps": 7}, 8, 1),
    ({"mode": "pgd", "steps": 7, "clean_share": 0.5}, 9, 1),
    ({"mode": "fast"}, 2, 1),
    ({"mode": "free", "replays": 4}, 4, 4),
    ({"mode": "free", "replays": 4, "clean_share": 0.5}, 8, 4),
    ({"mode": "fast", "start": "n-fgsm"}, 2, 1),
    ({"mode": "trades"}, 13, 1),
    ({"mode": "mart", "steps": 3}, 5, 1),
    ({"mode": "pgd", "steps": 3, "awp_gamma": 0.01}, 5, 1),
    ({"mode": "trades", "steps": 3, "awp_gamma": 0.01}, 8, 1),
]


@pytest.mark.parametrize(("told", "passes", "updates"), PASSES)
def test_a_forecast_counts_passes_and_updates(told: dict, passes: int, updates: int, monkeypatch) -> None:
    """Against the images that go through a model, and the updates that are made, in a step."""
    images, labels = pictures(12)
    model = linear()
    job = make_job(make_config(told), model, 12)
    seen, made = [], []
    model.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    update = job.engine.descend
    monkeypatch.setattr(job.engine, "descend", lambda *words: made.append(1) or update(*words))
    train_step(job, batches(job, images, labels, 1), 0, measure=False)
    assert (sum(seen), len(made)) == (12 * passes, updates)
    settings = job.plan.adversarial
    assert (settings.passes_per_image, settings.replays) == (passes, updates)
    sent = in_a_step(Traffic(100, 10, 0), settings, 7, 90)
    gradients = 100 * updates + (90 if "awp_gamma" in told else 0)
    assert sent == Traffic(gradients, 10 * updates, 0 if told["mode"] == "free" else 7)


def test_a_rate_of_plain_training_is_divided_by_the_passes(tiny_config: Path, tmp_path: Path) -> None:
    plain, robust = (load_config(Config, tiny_config, [f"adversarial.mode={mode}"]) for mode in ("off", "pgd"))
    run = RunDir(tmp_path / "runs" / "tiny")
    run.claim(plain)
    run.plan.write_text('{"world_size": 2}')
    run.metrics.write_text('{"kind": "train", "step": 3, "images_per_second": 800.0}\n')
    assert measured_rate(run.root, plain).images_per_second == 400
    assert measured_rate(run.root, robust).images_per_second == 50
    assert "x 1/8" in measured_rate(run.root, robust).source


def robust_accuracy(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> float:
    """Under ten steps of PGD from a random start."""
    model.eval()
    ball = Ball("Linf", eps)
    start = random_start(ball, images, 0, 0, range(len(images)))
    points = pgd(lambda x: F.cross_entropy(model(x), labels, reduction="sum"), ball, images, start, eps / 4, 10)
    return (model(points).argmax(1) == labels).double().mean().item()


WITHSTAND: dict[str, dict[str, Any]] = {
    "off": {"mode": "off"},
    "fast": {"mode": "fast"},
    "free": {"mode": "free", "replays": 2},
    "n-fgsm": {"mode": "fast", "start": "n-fgsm"},
    "trades": {"mode": "trades", "steps": 3},
    "mart-awp": {"mode": "mart", "steps": 3, "awp_gamma": 0.005},
}


def accuracy_after(name: str, small_betons: tuple[Path, Path]) -> float:
    """Robust accuracy on 70 images of clothes after training on 130 others, in each mode with as many updates."""
    train, test = small_betons
    images, labels = pixels(train), torch.from_numpy(open_beton(train).labels)
    told = WITHSTAND[name] | {"eps": "8/255"}
    epochs = 10 // told.get("replays", 1)
    config = make_config(told, {"lr": 0.2, "momentum": 0.9}, epochs=epochs, batch_size=50)
    torch.manual_seed(0)
    model = MODELS["resnet10"](num_classes=10, stem="cifar", width=0.125, mean=(0.286,) * 3, std=(0.353,) * 3)
    job = make_job(config, model.train(), len(images))
    source = batches(job, images, labels, job.plan.total_steps)
    for step in range(job.plan.total_steps):
        train_step(job, source, step, measure=False)
    return robust_accuracy(model, pixels(test), torch.from_numpy(open_beton(test).labels), 8 / 255)


def test_training_on_attacks_withstands_attacks(small_betons: tuple[Path, Path]) -> None:
    """Measured on two machines: 0.00 and 0.01 plain, 0.36 and 0.43 fast, 0.41 and 0.43 free."""
    off, fast, free = (accuracy_after(name, small_betons) for name in ("off", "fast", "free"))
    assert min(fast, free) > off + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n-fgsm", "trades", "mart-awp"])
def test_the_other_modes_withstand_attacks_too(name: str, small_betons: tuple[Path, Path]) -> None:
    """Measured: none below 0.33."""
    assert accuracy_after(name, small_betons) > 0.2


def test_the_example_is_the_plain_run_but_for_the_attack() -> None:
    folder = Path(__file__).parents[2] / "configs" / "fashion_mnist"
    plain, robust = (load_config(Config, folder / f"{name}.yaml") for name in ("plain", "adversarial"))
    differing = {key for key, value in flatten(robust).items() if flatten(plain)[key] != value}
    assert differing == {"name", "adversarial.mode", "adversarial.eps", "adversarial.eps_warmup_epochs"}


def convolution_gradients(graphs: list[torch.fx.GraphModule]) -> list[bool]:
    """Return for each backward of a convolution in compiled graphs whether it works out the weight's gradient."""
    wanted = torch.ops.aten.convolution_backward.default
    return [node.args[10][1] for graph in graphs for node in graph.graph.nodes if node.target is wanted]


@pytest.mark.parametrize("statistics", ["eval", "train"])
def test_a_compiled_attack_works_out_no_gradient_of_a_weight(statistics: str) -> None:
    """Steps of training after it still do, and there are as many graphs as the plan counts at most."""
    backwards: list[torch.fx.GraphModule] = []
    forwards: list[torch.fx.GraphModule] = []

    def keep(graphs: list[torch.fx.GraphModule]) -> Callable[..., object]:
        return lambda graph, inputs: graphs.append(graph) or make_boxed_func(graph.forward)

    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    job = make_job(make_config({"mode": "pgd", "steps": 2, "statistics": statistics}, batch_size=5), model, 14)
    backend = aot_autograd(fw_compiler=keep(forwards), bw_compiler=keep(backwards))
    job.engine.alone = job.engine.network = torch.compile(model, dynamic=False, backend=backend)
    images, labels = pictures(14)
    for step, batch in enumerate(batches(job, images, labels, 6)):
        before = model[0].weight.detach().clone()
        train_step(job, iter([batch]), step, measure=True)
        assert not torch.equal(model[0].weight, before)
    sizes = {len(job.plan.batch(step)) for step in range(3)}
    assert len(sizes) == 2
    asked = convolution_gradients(backwards)
    assert sorted(asked) == [False] * len(sizes) + [True] * len(sizes)
    assert len(forwards) <= job.plan.num_graphs == 3 * len(sizes)
