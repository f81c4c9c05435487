"""Planted defences are found out and the right cause is named; honest models pass."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sanity.honest import EPS, Tempered, Wrapped, fashion, honest
from sanity.planted import LEFT, PLANTED, OnlyAtRest, Storm
from torch import Tensor, nn
from torch.nn import functional

from kapdist.attack.ball import Ball
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.cli import file_and_overrides
from kapdist.config import AttackConfig, RemediesConfig, SanityConfig
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.records.sanity import Acted
from kapdist.records.sealed import read_array, write_array
from kapdist.run.paths import AttackDir, RunDir
from kapdist.sanity import signal as signals
from kapdist.sanity.effort import excess
from kapdist.sanity.examine import examine
from kapdist.sanity.points import surface
from kapdist.sanity.probes import fgsm, pgd
from kapdist.sanity.run import run_sanity, stored_violations
from kapdist.sanity.subject import Loss, Subject, cross_entropy, margin, sharp_cross_entropy
from kapdist.sanity.verdict import CAUSES, CHECKS, judged, overall

ENOUGH = RemediesConfig(iterations=10, restarts=2, draws=4, queries=30)
LITTLE = SanityConfig(num_images=24, iterations=10, restarts=2, draws=2, queries=30, remedies=ENOUGH)
LEAST = SanityConfig(num_images=8, iterations=2, restarts=2, draws=2, queries=5, remedies=ENOUGH)
BALL, BALL_L2 = Ball("Linf", EPS), Ball("L2", 0.8)


@cache
def network() -> nn.Module:
    """The honest network that all defences are planted on."""
    return honest("cnn")


@cache
def undefended_left() -> int:
    """How many images the same attack leaves of the network without a defence, which nothing is done about."""
    found = report(network())
    assert "acted" not in found
    return round(found["num_clean_correct"] * found["attacks"]["pgd, restarts"])


def report(model: nn.Module, config: SanityConfig = LITTLE, **options: object) -> dict:
    images, labels = fashion("test", config.num_images)
    return examine(model, images, labels, BALL, config, **options)


def number(found: dict, name: str) -> float:
    return next(check["value"] for check in found["checks"] if check["name"] == name)


def failures(found: dict) -> list:
    return [(check["name"], check["value"]) for check in found["checks"] if check["status"] == "fail"]


@pytest.mark.parametrize("defence", PLANTED, ids=lambda defence: defence.__name__)
def test_a_planted_defence_is_flagged_with_its_cause(defence: Callable[[nn.Module], nn.Module]) -> None:
    found = report(defence(copy.deepcopy(network())).eval().requires_grad_(False))
    assert found["verdict"] == "fail"
    assert set(found["causes"]) & PLANTED[defence], found["causes"]
    acted = Acted.model_validate(found["acted"])
    more, broken = LEFT.get(defence, (24, 0))
    assert acted.num_left <= undefended_left() + more, acted
    assert acted.num_robust - acted.num_left >= broken, acted
    assert not acted.believed or broken == 0


@pytest.mark.parametrize("kind", ["plain", "adversarial", "kap"])
def test_an_honest_model_is_not_flagged(kind: str) -> None:
    found = report(honest(kind))
    assert found["verdict"] == "pass", [check for check in found["checks"] if check["status"] in ("warn", "fail")]
    assert "acted" not in found
    left = found["attacks"]["pgd, restarts"]
    assert left > 0.5 if kind == "adversarial" else left < 0.3


class Overflowing(Wrapped):
    """A network whose logits are no numbers on bright images."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.where(images.mean((1, 2, 3))[:, None] < 0.35, torch.nan)


def test_logits_that_are_no_numbers_are_named_and_not_taken_for_a_memory() -> None:
    with pytest.raises(InputError, match=r"model: expected finite logits on every image, found .*examined image"):
        report(Overflowing(network()).eval())


class Reshaping(Wrapped):
    """A head that reshapes: of no images at all it cannot."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.reshape(len(images), -1).reshape(images.shape))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_examined_and_no_batch_is_empty(count: int) -> None:
    images, labels = fashion("test", LEAST.num_images)
    right = network()(images).argmax(1) == labels
    wrong = int((~right).nonzero()[0]) if count == 3 and not right.all() else int(right.nonzero()[0])
    chosen = torch.tensor([*right.nonzero().flatten().tolist()[: count - 1], wrong])
    found = examine(Reshaping(network()).eval(), images[chosen], labels[chosen], BALL, LEAST)
    assert found["num_images"] == count
    assert number(found, "company") < 1e-3


def test_an_honest_model_is_not_flagged_in_l2_either() -> None:
    images, labels = fashion("test", LITTLE.num_images)
    found = examine(network(), images, labels, BALL_L2, LITTLE)
    assert failures(found) == []
    assert found["attacks"]["pgd"] < 0.5


@pytest.mark.parametrize(
    ("ball", "factor"),
    [(BALL, 1e-1), (BALL, 1e-10), (BALL, 1e-20), (Ball("L2", 0.8), 1e-1), (Ball("L2", 0.8), 1e-20)],
)
def test_an_honest_model_is_not_flagged_however_small_its_logits(ball: Ball, factor: float) -> None:
    images, labels = fashion("test", LITTLE.num_images)
    found = examine(Tempered(network(), factor).eval(), images, labels, ball, LITTLE)
    assert found["verdict"] == "pass", failures(found)
    assert found["attacks"]["pgd"] < 0.3


def test_declared_noise_is_examined_and_undeclared_noise_is_flagged() -> None:
    noisy = honest("noisy cnn")
    declared = report(noisy, mode="fresh")
    assert declared["draws"] == LITTLE.draws
    assert failures(declared) == []
    acted = Acted.model_validate(declared["acted"])  # its flips are a warning, and so something was done
    assert acted.believed
    assert acted.remedies[0].attack == "averaged gradients"
    assert number(declared, "flips") > 0
    for name in ("agreement", "draws", "transfer off", "transfer fixed"):
        assert number(declared, name) is not None
    off = report(noisy, mode="off")
    assert (off["draws"], number(off, "flips")) == (1, None)


class DroppedPixels(Wrapped):
    """Random numbers from torch's global stream."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * (torch.rand_like(images[:, :1]) > 0.05))


def test_an_attack_that_had_too_few_steps_is_called_unfinished() -> None:
    assert "unfinished attack" in report(network(), LITTLE.model_copy(update={"iterations": 1}))["causes"]


def test_a_gradient_of_the_clean_image_alone_is_seen_in_one_step_being_better() -> None:
    found = report(OnlyAtRest(network()).eval())
    assert dict(failures(found))["one step"] > 0.5


def test_noise_that_drowns_the_gradient_is_flagged_though_it_is_declared() -> None:
    storm = report(Storm(network()).eval(), mode="fresh")
    assert "agreement" in dict(failures(storm))
    assert storm["causes"][0] == "randomness"


def test_a_report_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(1)
    first = report(DroppedPixels(network()).eval(), LEAST, seed=3)
    torch.manual_seed(2)
    np.random.seed(5)
    assert report(DroppedPixels(network()).eval(), LEAST, seed=3) == first
    assert report(DroppedPixels(network()).eval(), LEAST, seed=4) != first


def test_a_surrogate_breaks_what_a_masked_model_hides() -> None:
    masked = next(defence for defence in PLANTED if defence.__name__ == "RoundedInput")(network()).eval()
    found = report(masked, surrogates=[network()])
    assert number(found, "surrogate") > 0.3
    assert found["acted"]["remedies"][0]["num_broken"] > 8  # what the check's own transfer broke is counted
    assert number(report(network(), surrogates=[network()]), "surrogate") == 0


# The probes against answers that are known.


class Linear(nn.Module):
    """Two logits, +- w . x / 2: the margin towards class 1 is w . x, its gradient w everywhere."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, images: Tensor) -> Tensor:
        score = ((images - 0.5) * self.weights).flatten(1).sum(1) / 2
        return torch.stack([-score, score], 1)


def linear(side: int = 4) -> tuple[Subject, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(3, side, side, generator=random)
    images = 0.3 + 0.4 * torch.rand(16, 3, side, side, generator=random)
    subject = Subject(Linear(weights), "off", seed=0, batch_size=5)
    return subject, images, subject.logits(images).argmax(1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_attacks_break_exactly_what_is_within_reach_of_a_linear_model(norm: str) -> None:
    subject, images, labels = linear()
    weights = subject.model.weights
    distance = -margin(subject.logits(images), labels) / (weights.abs().sum() if norm == "Linf" else weights.norm())
    eps = distance.sort().values[6:8].mean().item()
    ball = Ball(norm, eps)  # type: ignore[arg-type]
    for found in (
        fgsm(subject, images, labels, ball),
        pgd(subject, images, labels, ball, iterations=20, seed=0).last,
    ):
        assert torch.equal(subject.logits(found).argmax(1) != labels, distance < eps)
        delta = (found - images).flatten(1)
        size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
        assert size.max() <= eps * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-20, 1e-36])
def test_no_factor_on_small_logits_changes_where_the_cross_entropy_climbs(factor: float) -> None:
    random = torch.Generator().manual_seed(0)
    large = 5 * torch.randn(6, 10, generator=random) + 3
    labels = torch.arange(6)

    def climbs(logits: Tensor, loss: Loss) -> Tensor:
        logits = logits.clone().requires_grad_()
        return functional.normalize(torch.autograd.grad(loss(logits, labels).sum(), logits)[0].double())

    small = 0.1 * large
    expected = climbs(small, sharp_cross_entropy)
    assert torch.allclose(climbs(factor * small, sharp_cross_entropy), expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(climbs(small, cross_entropy), expected, atol=0.1)
    assert torch.allclose(climbs(large, sharp_cross_entropy), climbs(large, cross_entropy), atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_steepest_step_has_norm_one_whatever_the_size_of_the_gradient(size: float) -> None:
    gradient = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
    assert torch.allclose(Ball("L2", 1.0).steepest(size * gradient), gradient / 5)
    assert torch.equal(Ball("L2", 1.0).steepest(0 * gradient), 0 * gradient)


def test_an_image_beyond_eps_is_measured() -> None:
    images = torch.full((2, 3, 2, 2), 0.5)
    ball = Ball("Linf", 0.1)
    assert excess(surface(ball, images, 0), images, ball) < 1e-6
    assert excess(images + torch.tensor([0.05, 0.12]).view(2, 1, 1, 1), images, ball) == pytest.approx(
        0.2, rel=1e-3
    )
    assert excess(images / 0, images, ball) == float("inf")


def test_numbers_of_a_linear_model_are_those_of_its_weights() -> None:
    subject, images, labels = linear()
    found = signals.measure(subject, [images], labels, BALL, seed=0)
    margins = margin(subject.logits(images), labels)
    assert found["neighbours"] == pytest.approx(1)
    assert found["false"] == pytest.approx(0, abs=1e-6)
    assert (found["nan"], found["zero"], found["quantised"], found["saturated"]) == (0, 0, 0, 0)
    promised = EPS * subject.model.weights.abs().sum() / margins.abs()
    assert found["vanishing"] == pytest.approx(promised.double().quantile(0.1).item(), rel=1e-5)


def test_a_draw_has_its_own_numbers_and_leaves_the_others_alone() -> None:
    images, _ = fashion("test", 4)
    subject = Subject(DroppedPixels(network()).eval(), "off", seed=0, batch_size=4)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, other = subject.logits(images, 1), subject.logits(images, 2)
    assert torch.equal(subject.logits(images, 1), first)
    assert not torch.equal(other, first)
    assert torch.equal(torch.get_rng_state(), state)
    fixed = Subject(DroppedPixels(network()).eval(), "fixed", seed=0, batch_size=4)
    assert torch.equal(fixed.logits(images, 1), fixed.logits(images, 2))


def test_every_check_is_judged_on_both_sides_of_its_thresholds() -> None:
    assert {check.cause for check in CHECKS} == set(CAUSES)
    for check in CHECKS:
        side = 1 if check.worse == "above" else -1
        for status, threshold in (("fail", check.fail), ("warn", check.warn)):
            if threshold is not None:
                assert check.judge(threshold + side * 1e-9) == status
                assert check.judge(threshold) != status
        assert check.source.partition(", ")[2].startswith("https://arxiv.org/abs/")
    numbers: dict[str, float | None] = {check.name: None for check in CHECKS}
    assert overall(judged(numbers)) == "pass"
    assert overall(judged(numbers | {"nan": float("inf")})) == "fail"
    with pytest.raises(KeyError, match="extra"):
        judged(numbers | {"extra": 1.0})


# The command.


def test_the_command_writes_a_report_and_failures_are_no_errors(kapdist, small_betons, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Rounded(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(3072, 10)\n"
        "    def forward(self, x):\n        return self.head((x * 15).round().flatten(1) / 15)\n"
        "def build():\n    torch.manual_seed(0)\n    return Rounded()\n"
    )
    (tmp_path / "aa.yaml").write_text(
        "eps: 8/255\nthreads: 1\nsanity: {num_images: 24, iterations: 3, queries: 20, "
        "remedies: {iterations: 3, queries: 20}}\n"
    )
    words = ("attack", "sanity", "run", "aa.yaml", "model.factory=model.py:build", f"data={small_betons[1]}")
    done = kapdist(*words, "device=cpu", "sanity.restarts=2")
    assert done.code == 0, done.output
    assert "quantised input" in done.output
    assert "verdict: fail" in done.output
    assert "skipped: no surrogate is named" in done.output
    assert "The report's own PGD said" in done.output
    found = json.loads((tmp_path / "run/attacks/aa/sanity.json").read_text())
    assert found["verdict"] == "fail"
    assert (found["restarts"], found["num_images"], len(found["weights_sha256"])) == (2, 24, 64)


def test_the_file_may_be_left_out_and_l1_is_refused(tmp_path: Path) -> None:
    assert file_and_overrides(["aa.yaml", "eps=0.1"], "sanity") == (Path("aa.yaml"), ["eps=0.1"])
    assert file_and_overrides(["name=mine"], "sanity") == (None, ["name=mine"])
    config = load_config(AttackConfig, *file_and_overrides(["norm=L1"], "sanity"))
    assert config == AttackConfig(name="sanity", norm="L1")
    with pytest.raises(InputError, match="norm: expected Linf or L2"):
        run_sanity(tmp_path / "run", config)
    with pytest.raises(InputError, match=r"override 'sanity\.draws=1'"):
        load_config(AttackConfig, None, ["name=mine", "sanity.draws=1"])


def attacked(world, **fields: object) -> AttackDir:
    plan_attack(world.run, world.config(**{"keep_adversarial": True} | fields))
    attack = RunDir(world.run).attack("aa")
    run_shard(attack.root, 0, 1)
    return attack


def test_stored_images_are_held_to_the_rules(world, short) -> None:
    assert stored_violations(RunDir(world.run).attack("aa")) is None
    attack = attacked(world, eps=0.1)
    assert stored_violations(attack) == 0
    clean = read_array(attack.clean_images(0)).clip(0.2, 0.8)
    found = clean + np.float32(0.1) * np.array([1, -1, 1.1, 0], dtype=np.float32).reshape(4, 1, 1, 1)
    found[3, 0, 0, 0] = np.nan
    write_array(attack.clean_images(0), clean)
    write_array(attack.adversarial_images(0), found)
    assert stored_violations(attack) == 2 / len(world.images)


@pytest.mark.parametrize("again", [{"eps": 0.05, "keep_adversarial": False}, {"eps": 0.05}, {"chunk_size": 11}])
def test_images_that_a_removed_plan_left_break_no_rules_of_the_next(world, short, again: dict) -> None:
    """Planned anew with a smaller eps, without images, and in fewer chunks; before its shards, and behind them."""
    attack = attacked(world, eps=0.1)
    attack.plan.unlink()
    plan_attack(world.run, world.config(**{"keep_adversarial": True, "eps": 0.1} | again))
    assert stored_violations(attack) is None  # beside chunks of the plan before, which its shards would refuse
    shutil.rmtree(attack.chunks)
    assert stored_violations(attack) is None
    run_shard(attack.root, 0, 1)
    assert stored_violations(attack) == (None if "keep_adversarial" in again else 0)
