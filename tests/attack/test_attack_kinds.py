"""What a model may return and do: scored as the exact answers say, or refused in one line that gives the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack.kinds import EPS, Changes, Linear, attacked, check, images_at
from torch import Tensor

from kapdist.attack.chunk import attack_chunk
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.run.paths import AttackDir

World = Any
SHARES = (2.0, 0.002, 0.1, -0.4, 0.1)
"""Far, at the edge, near, wrong, and near: distances in eps. The last image is in a chunk of its own."""
BROKEN = [False, True, True, False, True]
EVERY = ("random-noise", "hard-label", "square", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t")
SQUARE, NOISE = {"attacks": ("square",)}, {"attacks": ("random-noise",)}


def scored(world: World, model: str, shares: tuple[float, ...] = SHARES, norm: str = "Linf", **fields: Any) -> Any:
    """Attack a model of five classes; what the exact distances say is asserted."""
    images, labels = images_at(shares, 5, norm)
    options = {"num_classes": 5, "norm": norm, "eps": EPS[norm]}
    found = attacked(world, model, images, labels, **options | fields)
    assert torch.equal(world.images, images_at(shares, 5, norm)[0]), "the images were changed"
    check(found.plan, images, labels, found.broken, found.adversarial)
    return found


def refused(world: World, model: str, **fields: Any) -> str:
    """Return the one line that refuses a model of five classes."""
    with pytest.raises(InputError) as caught:
        scored(world, model, **fields)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix("model.factory=factory.py:build: ")


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("throughout", [True, False])
def test_logits_of_another_precision_score_the_exact_answers(
    world: World, short: None, dtype: str, norm: str, throughout: bool
) -> None:
    for attacks in (("square", "fab-t", "apgd-t"), ("apgd-ce",)):
        found = scored(world, f"Cast(5, torch.{dtype}, {throughout})", norm=norm, attacks=attacks)
        assert found.broken.tolist() == BROKEN
        assert f"the model's logits are {dtype}; attacks see them as float32" in found.plan.notes


@pytest.mark.parametrize("fields", [{}, SQUARE], ids=["apgd-ce", "square"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("(z, z)", "expected a tensor of logits, found a tuple"),
        ("{'logits': z}", "expected a tensor of logits, found a dict"),
        ("type('Output', (), {'logits': z})()", "expected a tensor of logits, found a Output"),
        ("z.detach().numpy()", "expected a tensor of logits, found a ndarray"),
        ("None", "expected a tensor of logits, found a NoneType"),
        ("z.argmax(1)", "expected logits (batch, classes) = (6, 5), found (6,)"),
        ("z[..., None]", "expected logits (batch, classes) = (6, 5), found (6, 5, 1)"),
        ("z > 0", "expected logits that are real numbers, found bool"),
        ("z.to(torch.complex64)", "expected logits that are real numbers, found complex64"),
        ("z.softmax(1)", "expected logits, found probabilities (rows in [0, 1] that sum to 1)"),
        ("(z / 30).softmax(1)", "expected logits, found probabilities (rows in [0, 1] that sum to 1)"),
        ("(z / 30).half().softmax(1)", "expected logits, found probabilities (rows in [0, 1] that sum to 1)"),
        ("(z / 30).bfloat16().softmax(1)", "expected logits, found probabilities (rows in [0, 1] that sum to 1)"),
        ("(z / 30).softmax(1).bfloat16()", "expected logits, found probabilities (rows in [0, 1] that sum to 1)"),
    ],
)
def test_what_is_no_logits_is_refused_and_named(
    world: World, short: None, change: str, found: str, fields: dict[str, Any]
) -> None:
    assert refused(world, f"Returns(5, lambda z: {change})", **fields).startswith(found)


def test_log_probabilities_and_logits_of_any_size_score_the_exact_answers(world: World, short: None) -> None:
    for change in ("z.log_softmax(1)", "z + 1000", "z.log_softmax(1).bfloat16()"):
        assert scored(world, f"Returns(5, lambda z: {change})").broken.tolist() == BROKEN


def test_dropout_that_eval_switches_off_is_none(world: World, short: None) -> None:
    for noise in ("off", "fixed", "fresh"):
        found = scored(world, "Before(5, nn.Dropout(0.5))", noise=noise)
        assert found.broken.tolist() == BROKEN
        if noise == "fresh":
            assert found.summary.rescored.clean.worst.value == 4 / 5


@pytest.mark.parametrize("fields", [{}, SQUARE], ids=["apgd-ce", "square"])
def test_dropout_left_on_is_refused_or_declared_noise(world: World, short: None, fields: dict[str, Any]) -> None:
    left_on = "Returns(5, lambda z: nn.functional.dropout(z, 0.5, training=True))"
    for noise in ("off", "fixed"):
        line = refused(world, left_on, noise=noise, **fields)
        assert line.startswith("expected a deterministic model (else noise=fresh, and version=eot-standard), found")
    assert refused(world, "AlwaysTraining(5)", **fields).endswith("found drop in training mode")
    images, labels = images_at((2.0, 0.1, -2.0), 5, "Linf")
    # Half of the draws drop the largest logit: what is averaged over 64 is right where the model is.
    options = {"num_classes": 5, "eps": 1e-6, "noise": "fresh", "eot": 64, "rescore": 200}
    found = attacked(world, left_on, images, labels, **options | fields)
    assert not found.broken.any()
    assert found.summary.num_clean_correct == 2
    rescored = found.summary.rescored
    assert rescored.clean.worst.value == 0
    assert rescored.clean.majority.value == 2 / 3
    assert 1 / 3 <= rescored.clean.single_draw.value <= 1 / 2


STATES = {
    "a buffer": ("self.count.add_(1)", "count changed"),
    "one that is not saved": ("self.unsaved.add_(1)", "unsaved changed"),
    "one that is replaced": ("self.count = self.count + 1", "count changed"),
    "a new one": ("self.register_buffer('late', torch.ones(()))", "a new one changed"),
    "a parameter": ("self.weight.mul_(1.0001)", "weight changed"),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("noise", ["off", "fresh"])
def test_a_model_whose_state_changes_under_attack_is_refused(
    make_plan: Callable[..., AttackPlan], short: None, kind: str, noise: str
) -> None:
    statement, found = STATES[kind]
    images, labels = images_at(SHARES, 5, "Linf")
    plan = make_plan("Linf", EPS["Linf"], ("square",), num_classes=5, noise=noise)
    words = f"whose parameters and buffers stay as they are under attack, found {found}$"
    with pytest.raises(InputError, match=words):
        attack_chunk(Changes(5, statement).requires_grad_(False), images, labels, plan, 0)
    same = Changes(5, "self.count.add_(0)").requires_grad_(False)
    same.register_buffer("unused", torch.full((3,), torch.nan))
    assert attack_chunk(same, images, labels, plan, 0).attacks[0].broke.any()


def test_no_chunk_is_left_of_a_model_whose_state_changes(world: World, short: None) -> None:
    assert refused(world, "Changes(5, 'self.count.add_(1)')").endswith("under attack, found count changed")
    (attack,) = (AttackDir(path) for path in world.folder.glob("run*/attacks/aa"))
    assert not attack.chunks.exists() or not list(attack.chunks.iterdir())
    with pytest.raises(InputError, match="found count changed"):
        run_shard(attack.root, 0, 1)


IN_PLACE = ("clamp_(0.3, 0.6)", "sub_(0.1)", "mul_(255).round_().div_(255)", "add_(torch.rand_like(x))")


@pytest.mark.parametrize("fields", [{}, SQUARE, NOISE], ids=["apgd-ce", "square", "random-noise"])
@pytest.mark.parametrize("noise", ["off", "fresh"])
def test_a_model_that_writes_into_its_images_is_refused_whatever_the_attack(
    world: World, short: None, noise: str, fields: dict[str, Any]
) -> None:
    for change in IN_PLACE:
        line = refused(world, f"Before(5, lambda x: x.{change})", noise=noise, **fields)
        assert line.startswith("expected a model that leaves its images as they are, found images changed in place")


def test_in_place_work_on_a_copy_scores_the_exact_answers(world: World, short: None) -> None:
    found = scored(world, "Before(5, lambda x: x.clone().sub_(0.25).add_(0.25))", attacks=("square", "apgd-ce"))
    assert found.broken.tolist() == BROKEN


def amounts(summary: Any) -> list[int]:
    return [summary.num_images, summary.num_clean_correct, summary.num_robust]


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("noise", ["off", "fresh"])
def test_all_images_wrong_are_none_robust_none_attacked_and_no_error(
    world: World, short: None, norm: str, noise: str
) -> None:
    options = {"attacks": EVERY, "noise": noise, "screen": 2, "chunk_size": 2, "eps": (EPS[norm] / 2, EPS[norm])}
    found = scored(world, "Linear(5)", (-2.0, -0.1, -0.4), norm, **options)
    summary = found.summary
    assert amounts(summary) == [3, 0, 0]
    assert (summary.robust_accuracy.value, summary.robust_accuracy.low, summary.max_norm) == (0, 0, 0)
    assert 0 < summary.robust_accuracy.high < 1
    assert [at.num_robust for at in summary.sweep] == [0, 0]
    assert all((stage.num_attacked, stage.num_broken) == (0, 0) for stage in summary.attacks)
    assert all(stage.forwards == stage.backwards == 0 for stage in summary.attacks)
    assert json.loads(json.dumps(summary.describe(), allow_nan=False))["num_robust"] == 0
    assert found.records["broken_by"].null_count() == 3
    if noise == "fresh":
        assert summary.rescored.adversarial.majority.value == 0


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(("share", "right", "robust"), [(2.0, 1, 1), (0.1, 1, 0), (-0.4, 0, 0)])
def test_a_plan_of_a_single_image(
    world: World, short: None, norm: str, share: float, right: int, robust: int
) -> None:
    for chunk_size in (1, 64):
        found = scored(world, "Linear(5)", (share,), norm, attacks=EVERY, screen=2, chunk_size=chunk_size)
        assert amounts(found.summary) == [1, right, robust]
        assert found.plan.num_chunks == 1
        assert (found.summary.clean_accuracy.value, found.summary.robust_accuracy.value) == (right, robust)
    images, labels = images_at((share,) * 4, 5, norm)
    options = {"norm": norm, "eps": EPS[norm], "num_classes": 5, "num_images": 1}
    assert amounts(attacked(world, "Linear(5)", images, labels, **options).summary) == [1, right, robust]


def test_a_model_that_is_right_everywhere_and_one_that_is_right_nowhere(
    make_plan: Callable[..., AttackPlan], short: None
) -> None:
    """Every attack, each on its own: nothing to find, and nothing to look for."""

    class Constant(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 1e-3 + torch.tensor([9.0, 0, 0, 0, 0])

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for norm in EPS:
        for name in EVERY:
            plan = make_plan(norm, EPS[norm], (name,), num_classes=5, compact=True)
            for label, right in ((0, True), (1, False)):
                labels = torch.full((3,), label)
                outcome = attack_chunk(Constant(5).requires_grad_(False), images, labels, plan, 0)
                assert outcome.attacks[0].attacked.tolist() == [right] * 3
                assert not outcome.attacks[0].broke.any()
                assert torch.equal(outcome.adversarial, images)
