"""Attacks that are functions of the user's: exact where they are, recorded as theirs, refused where they cheat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from attack.kinds import EPS, Linear, attacked, check, images_at
from torch import nn

from kapdist.attack.chunk import attack_chunk
from kapdist.attack.merge import merge
from kapdist.attack.own.others import Others
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, read_plan
from kapdist.records.worst import read_worst_cases
from kapdist.report.reading import read_run
from kapdist.report.table import setting
from kapdist.run.paths import AttackDir, RunDir

World = Any
SHARES = (2.0, 0.002, 0.5, -0.4, 0.7)
BROKEN = [False, True, True, False, True]

# On a linear model a step against the difference of two logits, as long as the ball is wide, is the best there is.
EXACT = """
import torch

def attack(model, images, labels, eps, generator):
    found = images.clone()
    for other in range(1, 5):
        points = images.clone().requires_grad_()
        logits = model(points)
        targets = (labels + other) % 5
        rise = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).sum()
        gradient = torch.autograd.grad(rise, points)[0]
        points = step(images, gradient, eps)
        broken = model(points).argmax(1) != labels
        found[broken] = points[broken]
    return found
"""
STEPS = {
    "Linf": "(images + eps * gradient.sign()).clamp(0, 1)",
    "L2": "(images + eps * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)",
}
# Random corners, of which each image tries a few: what is found depends on what the generator draws.
RANDOM = """
import torch

def attack(model, images, labels, eps, generator):
    found = images.clone()
    for _ in range(3):
        noise = torch.rand(images.shape, generator=generator, device=images.device)
        points = (images + eps * (2 * noise - 1).sign()).clamp(0, 1)
        broken = model(points).argmax(1) != labels
        found[broken] = points[broken]
    return found
"""


def write(world: World, text: str, name: str = "mine.py") -> None:
    (world.folder / name).write_text(text)


@pytest.mark.parametrize("norm", STEPS)
def test_an_exact_attack_of_the_user_s_scores_the_exact_answers(world: World, norm: str) -> None:
    write(world, EXACT + f"\ndef step(images, gradient, eps):\n    return {STEPS[norm]}\n")
    images, labels = images_at(SHARES, 5, norm)
    name = "mine.py:attack"
    fields = {"norm": norm, "eps": EPS[norm], "attacks": (name,)}
    found = attacked(world, "Linear(5)", images, labels, **fields)
    check(found.plan, images, labels, found.broken, found.adversarial)
    assert found.broken.tolist() == BROKEN
    (stage,) = found.summary.attacks
    assert (stage.name, stage.num_attacked, stage.num_broken) == (name, 4, 3)
    # Two passes for each other class and the verdict's, of every image that was right; none is the library's.
    assert (stage.forwards, stage.backwards) == (4 * (4 * 2 + 1), 4 * 4)
    assert (stage.library_forwards, stage.library_backwards) == (0, 0)


def sharded(world: World, name: str, order: list[int], **fields: Any) -> pl.DataFrame:
    plan_attack(world.run, world.config(name=name, **fields))
    attack = AttackDir(world.run / "attacks" / name)
    for shard in order:
        run_shard(attack.root, shard, len(order))
    merge(attack.root)
    table = pl.read_parquet(attack.records)
    return table.drop(column for column in table.columns if column.endswith("seconds"))


def test_its_verdicts_do_not_depend_on_shards_or_a_resume_and_join_the_worst_case(
    world: World, short: None
) -> None:
    write(world, RANDOM)
    fields = {"attacks": ("mine.py:attack", "square"), "eps": (0.06, 0.12)}
    whole = sharded(world, "one", [0], **fields)
    assert 0 < whole["mine.py:attack@0.06_broke"].sum() < 10
    assert sharded(world, "two", [2, 0, 1], **fields).equals(whole)
    attack = AttackDir(world.run / "attacks" / "two")
    attack.chunk(2).unlink()
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    assert pl.read_parquet(attack.records).select(whole.columns).equals(whole)
    (case,) = read_worst_cases(RunDir(world.run).worst_case).cases
    assert {"mine.py:attack"} <= {first.attack for first in case.first} <= {"mine.py:attack", "square"}


def test_another_file_is_another_plan_and_no_shard_runs_it(world: World, short: None) -> None:
    write(world, RANDOM)
    config = world.config(attacks=("mine.py:attack",), eps=0.1)
    plan = plan_attack(world.run, config)
    (sha256,) = plan.functions.values()
    assert sha256 is not None
    assert f"mine.py:attack (sha256 {sha256[:12]}) is an attack of the user's own" in plan.notes
    attack = AttackDir(world.run / "attacks" / "aa")
    assert read_plan(attack).fingerprint == plan.fingerprint
    write(world, RANDOM.replace("range(3)", "range(4)"))
    with pytest.raises(InputError, match=r"functions.mine.py:attack = .* as this attack was planned"):
        plan_attack(world.run, config)
    with pytest.raises(InputError, match=r"attacks=mine.py:attack: expected the function's file as it was"):
        run_shard(attack.root, 0, 1)
    assert not list(attack.chunks.glob("*"))


def test_the_page_says_whose_attack_it_is(world: World) -> None:
    write(world, RANDOM)
    sharded(world, "aa", [0], attacks=("mine.py:attack",), eps=(0.01, 0.02), num_images=4)
    (attack,) = read_run(world.run, "run").attacks
    sha256 = attack.summary.functions["mine.py:attack"]
    said = f"mine.py:attack (the user's own, sha256 {sha256[:12]})"
    assert said in setting(attack).version_text
    assert "/" not in setting(attack).slug()
    write(world, RANDOM + "\n")
    sharded(world, "bb", [0], attacks=("mine.py:attack",), eps=(0.01, 0.02), num_images=4)
    first, second = (setting(attack) for attack in read_run(world.run, "run").attacks)
    assert first != second, "two files are one setting"
    assert first.slug() != second.slug()
    long = replace(first, attacks=tuple(f"folder/{number}.py:attack" for number in range(100)))
    assert len(long.slug()) < 200
    assert long.slug() != replace(long, attacks=(*long.attacks, "one.py:more")).slug()


FORM = "expected images (2, 3, 8, 8), float32, on cpu, found "
CALLS = {
    "return images[:1]": FORM + "(1, 3, 8, 8), float32, on cpu",
    "return images.double()": FORM + "(2, 3, 8, 8), float64, on cpu",
    "return images.numpy()": "expected a tensor of images (2, 3, 8, 8), found a ndarray",
    "pass": "expected a tensor of images (2, 3, 8, 8), found a NoneType",
    "return images / 0 - images / 0": "expected finite images, found NaN or infinity in 2 of 2",
    "return images - 2": "expected images in [0, 1], found values from -1.99",
    "return (images + 0.5).fmod(1)": "within Linf eps 0.02, the clean one where none was found, found 2 of 2",
    "model.train(); return images": "leaves the model as it is, found the mode of the model changed",
    "model.requires_grad_(); return images": "found requires_grad of 0.weight changed",
    "next(model.parameters()).data.add_(1); return images": "found 0.weight changed",
    "list(model.modules())[-1].register_forward_hook(print); return images": "found a hook of 3 changed",
    "return images + 0 * torch.rand(1)": "found torch's global one drawn from or seeded",
    "torch.manual_seed(1); return images": "torch.manual_seed(generator.initial_seed())), found torch's global",
    "np.random.rand(); return images": "(numpy.random.default_rng(generator.initial_seed())), found numpy's",
    "random.random(); return images": "(random.Random(generator.initial_seed())), found Python's global one",
    "return absent": "to be returned, found NameError: name 'absent' is not defined (mine.py, line 8)",
    "calls.append(1); return images / len(calls)": "the same images from the same arguments, found others when",
}
HEAD = """import random
import numpy as np
import torch
calls = []


def attack(model, images, labels, eps, generator):
    """


@pytest.mark.parametrize("body", CALLS)
def test_what_breaks_a_rule_is_refused_before_anything_is_queued(world: World, body: str) -> None:
    write(world, HEAD + body + "\n")
    eps = 1.0 if "calls" in body else 0.02
    with torch.random.fork_rng(devices=[]), pytest.raises(InputError) as caught:
        plan_attack(world.run, world.config(attacks=("mine.py:attack",), eps=eps))
    line = str(caught.value)
    assert line.startswith("attacks=mine.py:attack: expected ")
    assert CALLS[body] in line
    assert "\n" not in line
    assert not (world.run / "attacks" / "aa" / "plan.json").exists()


NO_FUNCTIONS = {
    "none.py:attack": "attacks=none.py:attack: expected the file none.py, found no such file",
    "mine.py:other": "attacks=mine.py:other: expected a function other in mine.py, found no such name",
    "broken.py:attack": "attacks=broken.py:attack: expected a module that can be imported, found SyntaxError",
}


@pytest.mark.parametrize("name", NO_FUNCTIONS)
def test_what_is_no_function_is_refused(world: World, name: str) -> None:
    write(world, RANDOM)
    write(world, "def attack(:\n", "broken.py")
    with pytest.raises(InputError) as caught:
        plan_attack(world.run, world.config(attacks=(name,)))
    assert str(caught.value).startswith(NO_FUNCTIONS[name])


def test_what_no_trial_shows_ends_the_shard_in_one_line_and_keeps_the_chunks_before(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Two images go well, and three, as in the first chunks, where one is wrong before."""
    write(world, RANDOM.replace("    found", "    assert len(images) < 4, 'too many'\n    found", 1))
    plan_attack(world.run, world.config(attacks=("mine.py:attack",)))
    attack = AttackDir(world.run / "attacks" / "aa")
    with caplog.at_level(logging.ERROR), pytest.raises(InputError) as caught:
        run_shard(attack.root, 0, 1)
    assert str(caught.value).endswith("found AssertionError: too many (mine.py, line 5)")
    assert "Traceback" in caplog.text, "the log has no traceback"
    assert "assert len(images) < 4" in caplog.text
    assert [file.name for file in sorted(attack.chunks.glob("*"))] == [attack.chunk(n).name for n in (0, 1)]


def attack_alone(make_plan: Callable[..., AttackPlan], function: Callable[..., Any], **fields: Any) -> Any:
    device = fields.get("device", "cpu")
    plan = make_plan("Linf", 0.02, ("apgd-ce",), num_classes=5, **fields)
    plan = plan.model_copy(update={"attacks": ("f.py:f",)})
    model = Linear(5).eval().requires_grad_(False).to(device)
    images, labels = (tensor.to(device) for tensor in images_at((0.9, 0.95, 0.5), 5, "Linf"))
    others = Others(functions={"f.py:f": function})
    return model, lambda: attack_chunk(model, images, labels, plan, 0, others).attacks[0]


def test_a_model_is_given_back_as_it_was(make_plan: Callable[..., AttackPlan]) -> None:
    def spoils(model: nn.Module, images: torch.Tensor, *_: Any) -> torch.Tensor:
        model.train()
        for parameter in model.parameters():
            parameter.requires_grad_()
            parameter.data.zero_()
        return images

    model, attack = attack_alone(make_plan, spoils)
    before = model.weight.clone()
    with pytest.raises(InputError, match="expected an attack that leaves the model as it is"):
        attack()
    assert torch.equal(model.weight, before)
    assert not model.training
    assert not model.weight.requires_grad


def test_a_rounding_beyond_the_ball_is_pulled_back_and_a_thousandth_is_none(
    make_plan: Callable[..., AttackPlan],
) -> None:
    def beyond(factor: float) -> Callable[..., torch.Tensor]:
        return lambda model, images, labels, eps, generator: images + factor * eps

    _, attack = attack_alone(make_plan, beyond(1 + 5e-4))
    assert attack().norm.max() <= 0.02 * (1 + 1e-6) + 2**-24
    _, attack = attack_alone(make_plan, beyond(1 + 2e-3))
    with pytest.raises(InputError, match=r"within Linf eps 0.02, .* found 3 of 3 beyond, up to 0.02004"):
        attack()


def test_what_it_is_given_is_its_own_and_in_evaluation_mode(make_plan: Callable[..., AttackPlan]) -> None:
    def writes(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *_: Any) -> torch.Tensor:
        assert not model.training
        assert torch.is_grad_enabled()
        clean = images.clone()
        images.zero_()
        labels.zero_()
        return clean

    _, attack = attack_alone(make_plan, writes)
    outcome = attack()
    assert outcome.attacked.all()
    assert not outcome.broke.any()
    assert not outcome.norm.any()


def test_others_code_may_draw_from_the_global_generator_in_a_fork_of_it(
    make_plan: Callable[..., AttackPlan],
) -> None:
    drawn = []

    def forked(model: nn.Module, images: torch.Tensor, labels: Any, eps: float, generator: Any) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            drawn.append(torch.rand(()).item())
        return images

    for seed in (1, 1, 2):
        attack_alone(make_plan, forked, seed=seed)[1]()
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_generator_is_there_and_the_global_one_is_watched(
    make_plan: Callable[..., AttackPlan],
) -> None:
    def draws(model: nn.Module, images: torch.Tensor, labels: Any, eps: float, generator: Any) -> torch.Tensor:
        noise = torch.rand(images.shape, generator=generator, device="cuda")
        return (images + eps * (2 * noise - 1)).clamp(0, 1)

    def draws_globally(model: nn.Module, images: torch.Tensor, *_: Any) -> torch.Tensor:
        return images + 0 * torch.rand_like(images)

    _, attack = attack_alone(make_plan, draws, device="cuda")
    assert attack().attacked.all()
    _, attack = attack_alone(make_plan, draws_globally, device="cuda")
    with pytest.raises(InputError, match="found torch's GPU global one drawn from or seeded"):
        attack()


def test_a_list_with_functions_is_of_version_custom_and_written_down_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{attacks: [apgd-ce, 'mine.py:attack', my.module:function], gradient_of: 'b.py:f'}")
    config = load_config(AttackConfig, file)
    assert config.version == "custom"
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(AttackConfig, tmp_path / "b.yaml") == config
    for word, found in (("apgd-xe", "expected apgd-ce, apgd-dlr"), ("transfer:x", "or FILE.py:function for an")):
        with pytest.raises(InputError, match=found):
            load_config(AttackConfig, None, [f"attacks=[{word}]", "name=x"])
    with pytest.raises(InputError, match="each attack once"):
        load_config(AttackConfig, None, ["attacks=['a.py:f','a.py:f']", "name=x"])


def test_a_plan_without_functions_has_the_fingerprint_that_it_always_had(world: World) -> None:
    plan = plan_attack(world.run, world.config())
    assert not {"functions", "gradient_of", "own_settings"} & plan.identity().keys()
    older = plan.model_dump(mode="json", exclude={"functions", "gradient_of"})
    del older["own_settings"]["surrogates"]
    assert AttackPlan.model_validate(older).fingerprint == plan.fingerprint
