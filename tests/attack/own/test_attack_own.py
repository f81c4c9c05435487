"""Attacks of our own that use no gradient of the model: random noise, hard labels, transfers from a second run."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.merge import merge
from kapdist.attack.own.hard_label import RayS, blocks
from kapdist.attack.own.others import Others
from kapdist.attack.own.random_noise import RandomNoise
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.records.attack_plan import AttackPlan, OwnSettings
from kapdist.run.files import write_json
from kapdist.run.paths import AttackDir, RunDir
from kapdist.sanity.run import load_surrogates

MakePlan = Callable[..., AttackPlan]


def two_classes(num_images: int = 10, side: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of two classes, and images so far from 0 and 1 that the box is never in the way."""
    random = torch.Generator().manual_seed(2)
    size = 3 * side**2
    linear = nn.Linear(size, 2)
    linear.weight.data, linear.bias.data = torch.randn(2, size, generator=random), torch.zeros(2)
    images = 0.45 + 0.1 * torch.rand(num_images, 3, side, side, generator=random)
    model = nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
    return model, images, model(images).argmax(1)


def exact_radius(model: nn.Module, images: Tensor, direction: Tensor) -> Tensor:
    """Distance to the boundary along directions, (B,)."""
    slope = (model[1].weight[1] - model[1].weight[0]).double()
    logits = model.double()(images.double())
    model.float()
    margin = logits[:, 1] - logits[:, 0]
    return -margin / (direction.double() @ slope)


@pytest.mark.parametrize(("norm", "size"), [("Linf", 1.0), ("L2", 48**0.5), ("L1", 48.0)])
def test_hard_labels_alone_find_the_exact_radius_of_a_linear_model(norm: str, size: float) -> None:
    model, images, labels = two_classes(2, side=4)
    slope = model[1].weight[1] - model[1].weight[0]
    best = torch.where((labels == 0)[:, None], slope.sign(), -slope.sign()) / size  # of all rays of signs
    radius = exact_radius(model, images, best)
    assert (radius > 0).all()
    for close, found_any in ((0.98, False), (1.03, True)):
        for row in range(len(images)):
            eps = close * radius[row].item()
            found = RayS(model, Ball(norm, eps), 900).perturb(images[row : row + 1], labels[row : row + 1])
            assert (model(found).argmax(1) != labels[row]).item() is found_any
            assert Ball(norm, eps).inside(found, images[row : row + 1]).all()
            assert torch.equal(found, images[row : row + 1]) is not found_any


def test_a_batch_gets_what_each_of_its_images_would_get() -> None:
    model, images, labels = two_classes()
    attack = RayS(model, Ball("Linf", 0.01), 400)
    alone = [attack.perturb(images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
    assert torch.equal(attack.perturb(images, labels), torch.cat(alone))


class Counts(nn.Module):
    """Says class 0, and counts; with `fragile`, only of the images that it was shown first."""

    def __init__(self, clean: Tensor | None = None) -> None:
        super().__init__()
        self.clean, self.queries = clean, 0

    def forward(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        changed = torch.zeros(len(images), dtype=torch.long)
        if self.clean is not None:
            changed = (images != self.clean[: len(images)]).flatten(1).any(1).long()
        return nn.functional.one_hot(changed, 3).float()


def test_no_more_queries_than_allowed_are_made_and_none_after_success() -> None:
    images, labels = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long)
    for attack in (RandomNoise, RayS):
        never, at_once = Counts(), Counts(images)
        assert torch.equal(attack(never, Ball("L2", 0.1), 50).perturb(images, labels), images)
        assert never.queries == 150
        found = attack(at_once, Ball("L2", 0.1), 50).perturb(images, labels)
        assert (at_once(found).argmax(1) == 1).all()
        assert at_once.queries < 100


def test_the_blocks_are_halved_down_to_single_values_and_begin_again() -> None:
    def first(iterator: Iterator[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        return [next(iterator) for _ in range(count)]

    found = first(blocks(4), 8)
    assert found == [(0, 4), (0, 2), (2, 4), (0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    for start, end in pairwise(first(blocks(5), 14)):
        assert end[0] in (start[1], 0)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_random_noise_is_of_size_eps_and_then_of_all_sizes_below(norm: str) -> None:
    images = torch.full((400, 3, 8, 8), 0.5)
    ball = Ball(norm, 0.1)
    noise = RandomNoise(nn.Identity(), ball, 2)
    sizes = [ball.distance(images + noise.draw(images, number), images) for number in (0, 1)]
    assert (sizes[0] <= ball.largest_distance(192)).all()
    assert torch.allclose(sizes[0], torch.tensor(0.1, dtype=torch.float64), rtol=1e-5)
    share = sizes[1] / 0.1  # a uniform share; in Linf of corners too
    assert abs(share.mean() - 0.5) < 0.05
    assert abs(share.std() - 12**-0.5) < 0.03
    assert abs(noise.draw(images, 0).mean()) < 0.1 / 192  # no direction is preferred


def test_what_breaks_the_surrogate_breaks_an_equal_model_and_the_other_keeps_its_own(make_plan: MakePlan) -> None:
    model, images, labels = two_classes()
    slope = model[1].weight[1] - model[1].weight[0]
    radius = exact_radius(model, images, torch.where((labels == 0)[:, None], slope.sign(), -slope.sign()))
    eps = radius.sort().values[4:6].mean().item()
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    other[1].weight.data, other[1].bias.data = torch.stack([slope * 0, slope.flip(0)]), torch.zeros(2)
    plan = make_plan("Linf", eps, ("transfer",), num_classes=2)
    same = attack_chunk(model, images, labels, plan, 0, Others({"transfer": model})).attacks[0]
    assert torch.equal(same.broke, radius < eps)
    assert same.backwards == 10 * 101  # of the surrogate: one loss, as two classes have no other
    assert same.forwards == 10 * (1 + 1 + 101 + 1)
    assert (
        attack_chunk(model, images, labels, plan, 0, Others({"transfer": other})).attacks[0].broke.sum()
        < same.broke.sum()
    )


def finished_run(folder: Path, num_classes: int = 5) -> Path:
    """Return a run directory with a config and weights, as after a training."""
    run = RunDir(folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"data: {{train: a.beton, validation: images.beton, resolution: 8}}\n"
        f"model: {{name: resnet10, num_classes: {num_classes}, stem: cifar, width: 0.125}}\n"
    )
    config = run.load_config()
    with torch.random.fork_rng():
        torch.manual_seed(num_classes)
        save_file(build_model(config.model, config.kap).state_dict(), run.weights)
    return folder


OWN = {"attacks": ("apgd-ce", "random-noise", "hard-label", "transfer"), "random_draws": 20}


def test_an_attack_with_all_three_is_planned_sharded_and_merged(world, short, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    second = finished_run(tmp_path / "second")
    config = world.config(**OWN, hard_label_queries=40, transfer_from=second, eps=(0.01, 0.02), num_images=6)
    plan = plan_attack(world.run, config)
    assert plan.own_settings.surrogate is not None
    attack = AttackDir(world.run / "attacks" / "aa")
    for shard in range(3):
        run_shard(attack.root, shard, 3)
    summary = merge(attack.root)
    assert [stage.name for stage in summary.attacks][:4] == [f"{name}@0.01" for name in OWN["attacks"]]
    own = [stage for stage in summary.attacks if not stage.name.startswith("apgd")]
    assert all(stage.forwards > 0 and stage.library_forwards == 0 for stage in own)
    # The place of the second run is none of the plan's identity; its weights are.
    moved = tmp_path / "moved"
    second.rename(moved)
    again = world.config(**OWN, hard_label_queries=40, transfer_from=moved, eps=(0.01, 0.02), num_images=6)
    assert plan_attack(world.run, again).fingerprint == plan.fingerprint


def test_the_plan_of_an_attack_without_them_has_no_trace_of_them(world) -> None:  # type: ignore[no-untyped-def]
    plan = plan_attack(world.run, world.config(random_draws=3))
    assert plan.own_settings == OwnSettings()
    assert "own_settings" not in plan.identity()


def test_a_second_run_that_tells_other_classes_apart_is_refused(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its adversarial images would be made against other classes, and break next to nothing."""
    other = finished_run(tmp_path / "second")
    config = world.config(**OWN, transfer_from=other, sanity={"surrogate": other})
    plan, images = plan_attack(world.run, config), world.describe_images(None, None)
    for names, found in ((list("01243"), "'4'"), (list("0123"), "none"), (["0", "1", "x", "3", "4"], "'x'")):
        write_json(RunDir(other).plan, {"classes": names})
        for key, refused in (
            ("transfer_from", lambda: plan_attack(world.run, config)),
            ("sanity.surrogate", lambda: load_surrogates(config, plan, images, torch.device("cpu"))),
        ):
            with pytest.raises(InputError) as error:
                refused()
            assert str(error.value).startswith(f"{key}={other}: expected class "), key
            assert f"as of the images of images.beton, found {found}" in str(error.value)
    write_json(RunDir(other).plan, {"classes": list("01234")})
    assert plan_attack(world.run, config) == plan
    assert len(load_surrogates(config, plan, images, torch.device("cpu"))) == 1


def test_a_second_run_that_does_not_fit_is_refused(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = finished_run(tmp_path / "seven", num_classes=7)
    with pytest.raises(InputError, match="a run with the 5 classes of the attacked model, found 7 classes"):
        plan_attack(world.run, world.config(**OWN, transfer_from=other))
    (other / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        plan_attack(world.run, world.config(**OWN, transfer_from=other))
    with pytest.raises(ValueError, match="transfer_from=RUN with transfer among attacks"):
        world.config(attacks=("transfer",))
    with pytest.raises(ValueError, match="transfer_from=RUN with transfer among attacks"):
        world.config(transfer_from=other)
