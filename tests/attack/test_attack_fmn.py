"""The smallest perturbation against distances in closed form, and what becomes of it in the records."""

from collections.abc import Callable

import polars as pl
import pytest
import torch
from attack.kinds import EPS, RandomTemperature, distances, images_at
from attack.test_attack_known_answers import exact_radius, linear_problem
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.merge import merge
from kapdist.attack.own.fmn import FastMinimumNorm
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.records.attack_plan import AttackPlan, OwnSettings
from kapdist.run.paths import AttackDir

MakePlan = Callable[..., AttackPlan]
NORMS = [("Linf", 1.0), ("L2", 2.0), ("L1", torch.inf)]


@pytest.mark.parametrize(("norm", "dual"), NORMS)
def test_the_smallest_perturbation_of_a_linear_model_is_its_margin_over_the_dual_norm(
    make_plan: MakePlan, norm: str, dual: float
) -> None:
    model, images, labels = linear_problem()
    radius = exact_radius(model, images, labels, dual)
    right = model(images).argmax(1) == labels
    between = radius[right].sort().values[4:6].mean().item()
    plan = make_plan(norm, between, ("fmn",), num_classes=4, own_settings=OwnSettings(fmn_steps=60))
    outcome = attack_chunk(model, images, labels, plan, 0)
    assert (outcome.smallest[~right] == 0).all()
    share = outcome.smallest[right] / radius[right]
    assert share.min() >= 1
    assert share.max() < 1.02
    assert torch.equal(outcome.attacks[0].broke, right & (outcome.smallest <= between))
    assert outcome.attacks[0].broke.sum() == 5
    assert (outcome.attacks[0].forwards, outcome.attacks[0].backwards) == (11 * 61, 11 * 60)


class Corner(nn.Module):
    """Class 1 where every value is nearly white, class 2 where one is nearly black; class 0 elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.stack([0 * flat.sum(1), 6 * (flat.mean(1) - 0.9), flat.amin(1) * -50 - 100], 1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_range_of_an_image_is_no_obstacle(norm: str) -> None:
    """[0, 1] cuts most of the way short; all of it is found, and nothing outside of it."""
    images = torch.full((2, 3, 8, 8), 0.05)
    images[:, 0] = 0.999
    found = FastMinimumNorm(Corner(), norm, 200).search(images, torch.zeros(2, dtype=torch.long))
    assert (Corner()(found).argmax(1) == 1).all()
    assert found.min() >= 0
    assert found.max() <= 1
    needed = (0.9 * 192 - images[0].sum()).item()  # by how much the sum of the 128 dark values must rise
    least = {"Linf": (needed - 64 * 0.001) / 128, "L2": needed / 128**0.5, "L1": needed}[norm]
    distance = Ball(norm, 1.0).distance(found, images)
    assert (distance >= 0.999 * least).all()
    assert (distance <= 1.05 * least).all()


def test_what_no_step_breaks_has_no_distance_and_no_gradient_does_no_harm(make_plan: MakePlan) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0, 0]) + 0 * images.flatten(1)[:, :3]

    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 0, 1])
    plan = make_plan("L2", 0.1, ("fmn",), num_classes=3, own_settings=OwnSettings(fmn_steps=5))
    outcome = attack_chunk(Constant(), images, labels, plan, 0)
    assert outcome.smallest.tolist() == [torch.inf, torch.inf, 0]
    assert torch.equal(outcome.adversarial, images)


def test_it_unites_with_the_other_attacks_and_knows_more_than_they(make_plan: MakePlan) -> None:
    """One search for every eps; what others broke before has its distance all the same."""
    model, images, labels = linear_problem()
    radius = exact_radius(model, images, labels, 1.0)
    right = model(images).argmax(1) == labels
    sweep = (radius[right].min().item() * 0.9, radius[right].median().item() * 1.01, radius.max().item() * 1.1)
    options = {"smaller_eps": sweep[:-1], "num_classes": 4}
    own = {"own_settings": OwnSettings(fmn_steps=60)}
    alone = attack_chunk(model, images, labels, make_plan("Linf", sweep[-1], ("fmn",), **options, **own), 0)
    screened = make_plan("Linf", sweep[-1], ("fmn",), screen=5, **options, **own)
    both = attack_chunk(model, images, labels, screened, 0)
    assert torch.equal(both.smallest, alone.smallest)
    assert [attack.backwards for attack in alone.attacks] == [11 * 60, 0, 0]
    assert [int(attack.broke.sum()) for attack in alone.attacks] == [0, 6, 5]
    broke = [int(attack.broke.sum()) for attack in both.attacks]
    assert [broke[0] + broke[1], broke[2] + broke[3], broke[4] + broke[5]] == [0, 6, 5]
    assert broke[2] > 0
    plain = make_plan("Linf", sweep[-1], ("random-noise",), screen=5, **options)
    without = attack_chunk(model, images, labels, plain, 0)
    assert (without.smallest[right] >= radius[right]).all()
    for attack in without.attacks:
        assert (without.smallest[attack.broke] <= attack.eps).all()
    fallen = torch.stack([attack.broke for attack in without.attacks]).any(0)
    assert fallen.sum() > 5
    assert without.smallest[right & ~fallen].isinf().all()


def attacked(world, name: str, num_shards: int, **fields: object) -> AttackDir:  # type: ignore[no-untyped-def]
    plan_attack(world.run, world.config(name=name, **fields))
    attack = AttackDir(world.run / "attacks" / name)
    for shard in range(num_shards):
        run_shard(attack.root, shard, num_shards)
    merge(attack.root)
    return attack


def test_records_have_the_smallest_perturbation_whatever_the_shards(world, short) -> None:  # type: ignore[no-untyped-def]
    fields = {"attacks": ("apgd-ce", "fmn"), "fmn_steps": 20, "eps": [0.005, 0.01, 0.02]}
    one, three = attacked(world, "one", 1, **fields), attacked(world, "three", 3, **fields)
    tables = [pl.read_parquet(attack.records) for attack in (one, three)]
    assert tables[0]["smallest"].equals(tables[1]["smallest"])
    right = pl.col("label") == pl.col("clean_prediction")
    assert (tables[0].filter(~right)["smallest"] == 0).all()
    for eps in fields["eps"]:
        fallen = tables[0].filter(right & (pl.col("smallest") <= eps))["image"].to_list()
        assert fallen == tables[0].filter(pl.col("broken_eps") <= eps)["image"].to_list()
    assert (tables[0]["smallest"] > 0.02).any()


def test_a_noisy_model_s_smallest_perturbation_is_none_of_luck(make_plan: MakePlan) -> None:
    """Noise that never changes the class: averaged or not, no distance is below the exact one."""
    shares = (0.5, 0.8, 1.5, -1.0, 3.0)
    images, labels = images_at(shares, 5, "L2")
    exact = distances(images, labels, 5, "L2")
    own = {"own_settings": OwnSettings(fmn_steps=40), "noise": "fresh", "num_classes": 5}
    plan = make_plan("L2", EPS["L2"], ("fmn",), eot=2, **own)
    outcome = attack_chunk(RandomTemperature(5).requires_grad_(False), images, labels, plan, 0)
    right = exact > 0
    share = outcome.smallest[right] / exact[right]
    assert 1 <= share.min() <= share.max() < 1.05
    assert outcome.attacks[0].broke.tolist() == [True, True, False, False, False]


def test_plans_older_than_it_keep_their_fingerprints(make_plan: MakePlan) -> None:
    """Chunks of other attacks of ours name the fingerprint of a plan that had no key for its steps."""
    plan = make_plan("L2", 0.1, ("random-noise",), own_settings=OwnSettings(random_draws=3))
    assert plan.identity()["own_settings"] == {"random_draws": 3, "hard_label_queries": 0, "surrogate": None}
    plan = make_plan("L2", 0.1, ("fmn",), own_settings=OwnSettings(fmn_steps=3))
    assert plan.identity()["own_settings"]["fmn_steps"] == 3
