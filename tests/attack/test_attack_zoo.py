"""A zoo's network under attack: normalised inside, as its plan says, with the weights of a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from kapdist.attack.merge import merge
from kapdist.attack.model import load_model
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.models import zoo
from kapdist.models.factory import call_factory
from kapdist.records.attack_plan import read_plan, run_of
from kapdist.run.paths import AttackDir

World = Any

BY_HAND = """
import torch
from timm.models.nets import build
def by_hand():
    model = build(5, channels=8)
    def normalise(module, inputs):
        mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
        return ((inputs[0] - mean[:, None, None]) / std[:, None, None],)
    model.register_forward_pre_hook(normalise)
    return model
def told():
    model = build(5, channels=8)
    model.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    return model
"""


@pytest.fixture
def weights(zoos: Path, world: World) -> Path:
    (world.folder / "by_hand.py").write_text(BY_HAND)
    torch.manual_seed(3)
    state = call_factory("by_hand.py:by_hand").state_dict()
    steep = {key: value * (3 if value.dim() > 1 else 1) for key, value in state.items()}
    torch.save(steep, world.folder / "small.pth")
    network = call_factory("by_hand.py:by_hand").eval()
    network.load_state_dict(torch.load(world.folder / "small.pth", weights_only=True))
    world.labels = network(world.images).argmax(1)
    return world.folder / "small.pth"


def attacked(world: World, name: str, factory: str, weights: Path, **model: Any) -> pl.DataFrame:
    values = {"factory": factory, "weights": weights} | model
    plan_attack(world.run, world.config(name=name, model=values, eps=0.2, num_images=8))
    attack = AttackDir(world.run / "attacks" / name)
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    records = pl.read_parquet(attack.records)
    return records.select("image", "label", "clean_prediction", "broken_by", "broken_eps")


def test_it_is_attacked_as_one_that_is_normalised_by_hand(world: World, short: None, weights: Path) -> None:
    by_name = attacked(world, "name", "timm:small", weights, arguments={"channels": 8})
    by_hand = attacked(world, "hand", "by_hand.py:by_hand", weights)
    assert by_name.equals(by_hand)
    assert by_name["broken_by"].null_count() < len(by_name), "the attack broke something"
    attack = AttackDir(world.run / "attacks" / "name")
    plan = read_plan(attack)
    assert (plan.model.mean, plan.model.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert plan.packages["timm"] == "9.9"
    network = load_model(plan.model, run_of(attack))
    assert list(network.state_dict()) == list(torch.load(weights, weights_only=True))


def test_another_version_of_the_zoo_is_refused(world: World, weights: Path, zoos: Path) -> None:
    values = {"factory": "timm:small", "weights": weights, "arguments": {"channels": 8}}
    plan_attack(world.run, world.config(model=values))
    (zoos / "timm-9.9.dist-info" / "METADATA").write_text("Name: timm\nVersion: 9.10\n")
    with pytest.raises(InputError, match=r"expected timm 9\.9 as planned, found 9\.10"):
        run_shard(world.run / "attacks" / "aa", 0, 1)


def test_without_weights_it_says_where_they_come_from(world: World, weights: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan_attack(world.run, world.config(model={"factory": "timm:small"}))
    assert str(caught.value).startswith("model.weights: expected a file with the weights of timm:small, found none")
    assert "import timm, torch; torch.save(timm.create_model('small', pretrained=True)" in str(caught.value)


def test_torchvision_s_inceptions_take_their_images_as_their_weights_were_trained(
    world: World, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = importlib.import_module("torchvision.models")
    build, given = models.get_model, []

    def get_model(name: str, weights: None, transform_input: bool = False, **options: Any) -> Any:
        given.append(transform_input)
        return build(name, weights, **options)

    monkeypatch.setattr(models, "get_model", get_model)
    for transformed, own, expected in (
        (True, {}, True),
        (True, {"transform_input": False}, False),
        (False, {}, False),
    ):
        monkeypatch.setattr(zoo, "TRANSFORMED", ("small",) if transformed else ())
        zoo.published.cache_clear()
        given.clear()
        values = {"factory": "torchvision:small", "weights": weights, "arguments": {"channels": 8} | own}
        plan_attack(world.run, world.config(name=f"{transformed}-{len(own)}", model=values))
        assert set(given) == {expected}


def test_a_normalisation_that_nobody_applies_is_told(world: World, weights: Path) -> None:
    told = plan_attack(world.run, world.config(model={"factory": "by_hand.py:told", "weights": weights}))
    line = "by_hand.py:told states a normalisation that is not applied (mean 0.4, 0.5, 0.6 and std 0.2, 0.25, 0.3)"
    assert [note for note in told.notes if note.startswith(line)]
    values = {"factory": "timm:small", "weights": weights, "arguments": {"channels": 8}}
    silent = plan_attack(world.run, world.config(name="name", model=values))
    assert not [note for note in silent.notes if "normalisation" in note]
