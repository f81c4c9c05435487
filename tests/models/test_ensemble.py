"""An ensemble is its members side by side: the mean of what each computes alone, and no more."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kapdist.config import AttackConfig, Config, KapConfig, ModelConfig
from kapdist.config.noises import noises
from kapdist.errors import InputError
from kapdist.forecast.footprint import footprint
from kapdist.forecast.gather import notes_on_members
from kapdist.kap import KAPConv2d, fold, load_noise_state, noise, noise_state, seed_noise
from kapdist.models.build import build_model
from kapdist.models.description import describe
from kapdist.models.dropout import NoisyDropout
from kapdist.models.ensemble import Ensemble
from kapdist.models.strided import guard_strided
from kapdist.models.weights import load_weights, save_weights
from kapdist.train.job import initial_model

NETWORK: dict[str, Any] = {"name": "resnet10", "num_classes": 5, "width": 0.25, "stem": "cifar"}
NETWORK |= {"zero_init_residual": False}
NOISY = {"pool_size": 3, "layout": "line", "noise_std": 0.2}


def build(members: int, kap: dict[str, Any] | None = None, seed: int = 0, **model: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(ModelConfig(**NETWORK | {"members": members} | model), KapConfig(**kap or {}))


def linear(count: int, random_member: bool = True, mean: str = "logits") -> Ensemble:
    torch.manual_seed(1)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)) for _ in range(count)]
    return Ensemble(members, mean, random_member).double().eval()


@pytest.fixture(name="x")
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def mean_logits(each: list[Tensor]) -> Tensor:
    return sum(each) / len(each)


def mean_probabilities(each: list[Tensor]) -> Tensor:
    return (sum(one.exp() / one.exp().sum(1, keepdim=True) for one in each) / len(each)).log()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kap", [{}, NOISY])
@pytest.mark.parametrize(("mean", "formula"), [("logits", mean_logits), ("probabilities", mean_probabilities)])
def test_it_is_the_mean_of_its_members_with_the_same_gradients(
    x: Tensor, mean: str, formula: Callable[[list[Tensor]], Tensor], kap: dict[str, Any], training: bool
) -> None:
    ensemble = build(3, kap, members_mean=mean).double().train(training)
    alone = copy.deepcopy(ensemble)
    for model in (ensemble, alone):
        seed_noise(model, 7)
    found = ensemble(x)
    expected = formula([member(x) for member in reversed(alone.members)])  # each draws its own, in any order
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), list(model.parameters()))
        for model, logits in ((ensemble, found), (alone, expected))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    state = alone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ensemble.state_dict().items())


def test_each_member_begins_from_a_seed_of_its_own() -> None:
    few, many, other = build(2), build(3), build(2, seed=1)
    first, second = few.state_dict(), many.state_dict()
    assert {key.split(".")[1] for key in second} == {"0", "1", "2"}
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [model.members[n].conv1.weight for model in (many, other) for n in range(len(model.members))]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(len(weights)) for j in range(i))


def test_members_that_are_equal_draw_noise_of_their_own(x: Tensor) -> None:
    ensemble = build(2, NOISY).double().eval()
    ensemble.members[1].load_state_dict(ensemble.members[0].state_dict())
    first, second = (member(x) for member in ensemble.members)
    assert not torch.allclose(first, second)
    with noise(ensemble, "fixed"):
        assert not torch.allclose(*(member(x) for member in ensemble.members))
    with noise(ensemble, "off"):
        assert torch.equal(*(member(x) for member in ensemble.members))


def test_each_image_goes_through_one_member_as_likely_as_any_other() -> None:
    ensemble, x = linear(4), torch.rand(4000, 3, 2, 2, dtype=torch.double)
    each = torch.stack([member(x) for member in ensemble.members])
    places = (ensemble(x) - each).abs().amax(2) < 1e-12
    assert (places.sum(0) == 1).all()
    drawn = places.int().argmax(0)
    assert (drawn.bincount(minlength=4) - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5
    # Of neighbours in the batch as of any two: equal in a quarter of all pairs.
    assert abs((drawn[1:] == drawn[:-1]).double().mean() - 0.25) < 5 * (0.25 * 0.75 / 3999) ** 0.5


def test_the_draw_of_a_member_has_the_modes_of_noise() -> None:
    ensemble, x = linear(3), torch.rand(6, 3, 2, 2, dtype=torch.double)
    each = [member(x) for member in ensemble.members]
    assert not torch.equal(ensemble(x), ensemble(x))
    chosen = set()
    for seed in range(20):
        with noise(ensemble, "fixed", seed):
            fixed = ensemble(x)
            assert torch.equal(fixed, ensemble(x))
            torch.testing.assert_close(ensemble(x[2:3]), fixed[2:3])
        chosen |= {number for number, logits in enumerate(each) if torch.allclose(fixed, logits)}
    assert chosen == {0, 1, 2}
    with noise(ensemble, "off"):
        torch.testing.assert_close(ensemble(x), mean_logits(each))
    torch.testing.assert_close(ensemble.train()(x), mean_logits(each))
    single = linear(3, mean="probabilities")(x).exp()
    torch.testing.assert_close(single.sum(1), torch.ones(6, dtype=torch.double))


def test_the_draws_of_members_go_on_where_their_state_was_saved() -> None:
    ensemble, other = linear(3), linear(3)
    x = torch.rand(64, 3, 2, 2, dtype=torch.double)
    seed_noise(ensemble, 5)
    ensemble(x)
    state = noise_state(ensemble)
    expected = [ensemble(x), ensemble(x)]
    load_noise_state(other, state)
    assert all(torch.equal(other(x), logits) for logits in expected)
    seed_noise(other, 6)
    assert not torch.equal(other(x), expected[0])


def test_ranks_begin_with_equal_weights_and_draw_apart() -> None:
    model = NETWORK | {"members": 2, "random_member": True, "dropout": 0.5, "dropout_draws": "always"}
    config = Config(name="r", data={"train": "a", "validation": "b"}, model=model)
    ranks: list[Any] = [SimpleNamespace(rank=rank, device=torch.device("cpu")) for rank in range(2)]
    first, second = (initial_model(config, one).eval() for one in ranks)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    x = torch.rand(8, 3, 8, 8)
    assert not torch.equal(first(x), second(x))
    with noise(first, "off"), noise(second, "off"):
        assert torch.equal(first(x), second(x))


def test_a_member_is_exported_alone(tmp_path: Path, x: Tensor) -> None:
    ensemble = build(2, NOISY).eval()
    save_weights(ensemble.members[1], tmp_path / "one.safetensors")
    single = build(1, NOISY, seed=9).eval()
    load_weights(single, tmp_path / "one.safetensors")
    with noise(single, "off"), noise(ensemble, "off"):
        assert torch.equal(single(x.float()), ensemble.members[1](x.float()))


def test_weights_of_single_networks_start_the_members(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    singles = [build(1, seed=seed) for seed in range(2)]
    for number, single in enumerate(singles):
        save_weights(single, tmp_path / f"{number}.safetensors")
    ensemble = build(2, seed=5)
    load_weights(ensemble, tmp_path / "{member}.safetensors", start=True)
    for member, single in zip(ensemble.members, singles, strict=True):
        assert all(torch.equal(v, single.state_dict()[k]) for k, v in member.state_dict().items())
    with caplog.at_level(logging.WARNING):
        load_weights(ensemble, tmp_path / "0.safetensors", start=True)
    assert "all 2 members start alike" in caplog.text
    assert all(torch.equal(m.fc.weight, singles[0].fc.weight) for m in ensemble.members)


def test_weights_of_one_network_start_members_whose_layers_are_not_all_alike(tmp_path: Path) -> None:
    some = {"pool_size": 3, "where": ("layer1.*",)}
    save_weights(single := build(1, some), tmp_path / "one.safetensors")
    load_weights(ensemble := build(2, some, seed=5), tmp_path / "one.safetensors", start=True)
    assert all(torch.equal(member.fc.weight, single.fc.weight) for member in ensemble.members)
    with pytest.raises(InputError, match=r"kap.pool_size 3 \(the model's\), found weights made for .*\"conv1\": 1"):
        load_weights(build(2, {"pool_size": 3}), tmp_path / "one.safetensors", start=True)


def test_weights_of_another_number_of_members_are_refused(tmp_path: Path) -> None:
    for count in (1, 2):
        save_weights(build(count), tmp_path / f"{count}")
    for count, file, start, line in (
        (2, "1", False, "expected weights of an ensemble of 2, found those of one network"),
        (1, "2", True, r"expected weights of one network .*, found those of an ensemble"),
        (3, "2", True, r"expected weights of 3 members \(model.members\), found those of 2"),
        (1, "{member}", True, "for an ensemble only"),
        (3, "{member}", True, "0: expected weights as safetensors .*, found no such file"),
    ):
        with pytest.raises(InputError, match=line):
            load_weights(build(count), tmp_path / file, start=start)
    save_weights(build(2, members_mean="probabilities"), tmp_path / "log")
    with pytest.raises(InputError, match=r"model.members_mean logits .*, found weights made for probabilities"):
        load_weights(build(2), tmp_path / "log")


class OfMembers(nn.Module):
    """A network by other people whose parts all lie under the name that ours has for an ensemble's."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(12, 4) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return sum(member(x.flatten(1)) for member in self.members)


def test_members_of_a_network_by_other_people_are_its_own(tmp_path: Path, x: Tensor) -> None:
    trained, other = OfMembers().double(), OfMembers().double()
    save_weights(trained, tmp_path / "weights")
    load_weights(other, tmp_path / "weights")
    assert torch.equal(other(x[..., :2, :2]), trained(x[..., :2, :2]))
    with pytest.raises(InputError, match=r"expected members.2.weight of shape \(4, 12\), found no such key"):
        load_weights(OfMembers(3).double(), tmp_path / "weights")


def test_what_is_said_of_an_ensemble_is_said_of_its_members() -> None:
    said, single = describe(build(2, NOISY)), describe(build(1, NOISY))
    assert said == single | {"model.members_mean": "logits"}


@pytest.mark.parametrize("random_member", [False, True])
def test_it_folds_to_the_mean_of_plain_networks(x: Tensor, random_member: bool) -> None:
    options = {"random_member": random_member, "dropout": 0.5, "dropout_draws": "always"}
    ensemble = build(2, NOISY, **options).double().train()
    for _ in range(3):
        ensemble(x)  # running statistics other than a new norm's
    folded = fold(ensemble.eval(), norms=True)
    assert not any(isinstance(module, KAPConv2d | nn.BatchNorm2d) for module in folded.modules())
    with noise(ensemble, "off"):
        torch.testing.assert_close(folded(x), ensemble(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(folded(x), folded(x))


def test_it_compiles_to_the_same_function(x: Tensor) -> None:
    def member() -> nn.Module:
        conv = KAPConv2d(3, 8, 3, layout="line", noise_std=0.2)
        return nn.Sequential(conv, NoisyDropout(0.5), NoisyDropout(0.5, "2d"), nn.Flatten(), nn.Linear(288, 4))

    ensemble = Ensemble([member(), member()], "probabilities", random_member=True).train()
    compiled = torch.compile(copy.deepcopy(ensemble), backend="aot_eager", fullgraph=True)
    found, expected = compiled(x.float()), ensemble(x.float())
    torch.testing.assert_close(found, expected)
    found.sum().backward()


def test_half_precision_leaves_as_float32(x: Tensor) -> None:
    ensemble = build(2, members_mean="probabilities").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = ensemble(x.float())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(4))


def test_strided_convolutions_of_all_members_are_guarded() -> None:
    ensemble = guard_strided(build(2))
    guarded = [name for name, module in ensemble.named_modules() if type(module).__name__ == "PixelsFirstConv2d"]
    assert {name.split(".")[1] for name in guarded} == {"0", "1"}


def test_a_forecast_weighs_every_member() -> None:
    def weighed(**model: Any) -> Any:
        data = {"train": "a", "validation": "b"}
        return footprint(Config(name="f", data=data, model=NETWORK | model, kap=NOISY))

    one, four = weighed(), weighed(members=4)
    assert (four.num_parameters, four.num_buffers) == (4 * one.num_parameters, 4 * one.num_buffers)
    stream = torch.tensor(0).nbytes  # how many draws it has made
    drawn = weighed(members=4, random_member=True, dropout=0.5, dropout_draws="always").generator_bytes
    assert drawn == four.generator_bytes + (1 + 4 * 4) * stream  # a member, and dropout in each of four blocks


def test_a_forecast_of_an_attack_says_what_a_pass_is() -> None:
    def said(noise: str, **model: Any) -> list[str]:
        run = Config(name="f", data={"train": "a", "validation": "b"}, model=NETWORK | model)
        return notes_on_members(AttackConfig(name="aa", noise=noise), run)

    assert said("off") == []
    assert said("off", members=4, random_member=True) == ["a pass is one of each of the model's 4 members"]
    drawn = ["a pass is one of a single member, drawn of 4 for each image"]
    assert said("fresh", members=4, random_member=True) == drawn


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"members": 0}, "members"),
        ({"members": -1}, "members"),
        ({"random_member": True}, "random_member and members_mean with members above 1 only"),
        ({"members_mean": "probabilities"}, "random_member and members_mean with members above 1 only"),
        ({"members": 2, "members_mean": "votes"}, "members_mean"),
    ],
)
def test_what_is_no_ensemble_is_refused(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        ModelConfig(**NETWORK | keys)


def test_members_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="one member at least, found none"):
        Ensemble([])
    with pytest.raises(ValueError, match="mean must be one of logits, probabilities, found 'votes'"):
        Ensemble([nn.Identity()], "votes")
    with pytest.raises(ValueError, match="a random member needs two at least, found 1"):
        Ensemble([nn.Identity()], random_member=True)


def test_noises_are_what_a_model_draws() -> None:
    def said(kap: dict[str, Any] | None = None, **model: Any) -> dict[str, str]:
        return noises(ModelConfig(**NETWORK | model), KapConfig(**kap or {}))

    assert said() == said(dropout=0.5) == said(members=3) == said({"pool_size": 3}) == {}
    both = said(NOISY, dropout=0.5, dropout_kind="2d", dropout_draws="always")
    assert both == {"activation noise": "σ = 0.2", "dropout": "2d, p = 0.5"}
    assert said(members=3, random_member=True) == {"random member": "one of 3"}
