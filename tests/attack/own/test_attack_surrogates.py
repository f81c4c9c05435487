"""Transfers from any number of other models: runs and factories, each tried, each recorded by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attack.kinds import Linear, attacked, images_at
from safetensors.torch import save_file

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import Chunks, run_shard
from kapdist.config import AttackConfig
from kapdist.config.file import dump_config, load_config
from kapdist.config.surrogates import transfers
from kapdist.errors import InputError
from kapdist.forecast.attack import forecast_attack
from kapdist.records.attack_plan import OwnSettings, is_library
from kapdist.records.passes import passes_per_image
from kapdist.records.sealed import read_table
from kapdist.run.paths import AttackDir

World = Any
# The first tells nothing about the attacked model, Linear(5), the second is it, under other weights of its own.
SURROGATES = """
import torch
from attack.kinds import Linear
from kapdist.kap import KAPConv2d
from torch import nn

def useless():
    network = Linear(5)
    network.weight.data = torch.randn(5, 192, generator=torch.Generator().manual_seed(9))
    return network

def same():
    network = Linear(5)
    network.weight.data.zero_()
    return network

def four():
    return Linear(4)

class Unseeded(Linear):
    random = torch.Generator().manual_seed(0)

    def forward(self, images):
        return super().forward(images + 0.1 * torch.randn(images.shape, generator=self.random))

def unseeded():
    return Unseeded(5)

def noisy():
    torch.manual_seed(1)
    noisy = KAPConv2d(3, 4, 3, stride=3, pool_size=1, layout="line", noise_std=0.5)
    return nn.Sequential(noisy, nn.Tanh(), nn.Flatten(), nn.Linear(16, 5))
"""


@pytest.fixture
def surrogates(world: World) -> World:
    (world.folder / "others.py").write_text(SURROGATES)
    save_file(Linear(5).state_dict(), world.folder / "same.safetensors")
    return world


def test_every_surrogate_is_tried_and_recorded_by_its_name(surrogates: World, short: None) -> None:
    images, labels = images_at((2.0, 0.5, 0.4, -0.4, 0.45), 5, "Linf")
    sources = ["others.py:useless", {"factory": "others.py:same", "weights": "same.safetensors"}]
    fields = {"attacks": ("square", "transfer"), "transfer_from": sources, "num_classes": 5}
    found = attacked(surrogates, "Linear(5)", images, labels, **fields)
    names = ["transfer:others.py:useless", "transfer:others.py:same"]
    assert [stage.name for stage in found.summary.attacks] == ["square", *names]
    assert found.broken.tolist() == [False, True, True, False, True]
    square, useless, same = found.summary.attacks
    assert useless.num_broken == 0
    assert same.num_broken == 3 - square.num_broken > 0
    assert (useless.library_forwards, same.library_backwards) == (0, 0)
    # Of the image that stays, the passes through the model and its surrogate, as they are forecast.
    settings = found.plan.settings
    (_, _, forecast, _) = passes_per_image(found.plan.attacks, settings, 5, OwnSettings())
    assert useless.forwards == useless.num_attacked * forecast.forwards
    assert useless.backwards == useless.num_attacked * forecast.backwards
    # Places are none of the plan's identity, weights and files are.
    planned = found.plan.identity()["own_settings"]["surrogates"]
    assert [model["factory"] for model in planned.values()] == ["others.py:useless", "others.py:same"]
    assert all("weights" not in model and model["weights_sha256"] for model in planned.values())


def test_one_surrogate_in_one_word_is_planned_as_ever(surrogates: World, short: None) -> None:
    config = surrogates.config(attacks=("transfer",), transfer_from="others.py:useless")
    plan = plan_attack(surrogates.run, config)
    assert plan.attacks == ("transfer",)
    assert plan.own_settings.surrogate is not None
    assert plan.identity()["own_settings"].keys() == {"random_draws", "hard_label_queries", "surrogate"}
    (surrogates.folder / "others.py").write_text(SURROGATES + "\n")
    attack = AttackDir(surrogates.run / "attacks" / "aa")
    with pytest.raises(InputError, match=r"model.factory=others.py:useless: expected the factory's file as it was"):
        run_shard(attack.root, 0, 1)
    assert not any(Chunks(attack, plan).is_done(chunk) for chunk in range(plan.num_chunks))


def test_a_surrogate_s_noise_is_off_and_who_attacked_before_decides_nothing(surrogates: World, short: None) -> None:
    """Layers of kapdist's in a factory's network, which is not folded."""
    config = surrogates.config(attacks=("transfer",), transfer_from="others.py:noisy", eps=0.05)
    found = []
    for name, parts in (("one", [(0, 1)]), ("two", [(1, 2), (0, 2)])):
        plan_attack(surrogates.run, config.model_copy(update={"name": name}))
        attack = AttackDir(surrogates.run / "attacks" / name)
        for shard, shards in parts:
            run_shard(attack.root, shard, shards)
        merge(attack.root)
        found.append(read_table(attack.records, ["image", "transfer_broke", "transfer_norm"]))
    assert found[0].equals(found[1])
    assert found[0]["transfer_broke"].any()


REFUSED = {
    "others.py:four": r"logits \(batch, classes\) = \(6, 5\), found \(6, 4\)",
    "others.py:absent": "expected a function absent in others.py, found no such name",
    "others.py:unseeded": "which attacks seed, found logits .* apart in two passes from one seed",
    "absent.py:four": "expected the file absent.py, found no such file",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_a_factory_that_is_no_classifier_of_these_classes_is_refused(surrogates: World, factory: str) -> None:
    config = surrogates.config(attacks=("transfer",), transfer_from=["others.py:useless", factory])
    with pytest.raises(InputError, match=REFUSED[factory]) as caught:
        plan_attack(surrogates.run, config)
    assert factory in str(caught.value)


def named(*words: Any) -> list[str]:
    values = {"name": "x", "attacks": ["transfer"], "transfer_from": list(words)}
    return list(transfers(AttackConfig.model_validate(values).transfer_from))


def test_names_are_short_where_they_differ() -> None:
    assert named("runs/a") == ["transfer"]
    assert named("runs/a", "old/b", "m:f") == ["transfer:a", "transfer:b", "transfer:m:f"]
    assert named("runs/a", "old/a") == ["transfer:runs/a", "transfer:old/a"]
    weights = [{"factory": "m:f", "weights": name} for name in ("x", "y")]
    assert named(*weights) == ["transfer:m:f+x", "transfer:m:f+y"]
    with pytest.raises(ValueError, match="each surrogate once"):
        named("runs/a", "runs/a")


def test_a_config_names_them_in_words_or_keys(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{attacks: [apgd-ce, transfer], transfer_from: [runs/a, {factory: 'm:f', weights: w}]}")
    config = load_config(AttackConfig, file)
    assert config.listed == ("apgd-ce", "transfer:a", "transfer:m:f")
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(AttackConfig, tmp_path / "b.yaml") == config
    one = load_config(AttackConfig, file, ["transfer_from=runs/a", "sanity.surrogate=m:f"])
    assert (one.listed, str(one.sanity.surrogate[0].factory)) == (("apgd-ce", "transfer"), "m:f")
    for wrong in ("{weights: x}", "{run: a, factory: 'm:f'}"):
        with pytest.raises(InputError, match="a run or a factory, one of the two"):
            load_config(AttackConfig, file, [f"transfer_from={wrong}"])


def test_a_forecast_counts_each_and_says_what_it_cannot() -> None:
    values = {"name": "x", "transfer_from": ["a", "b"], "attacks": ["transfer", "mine.py:f"], "screen": 0}
    config = AttackConfig.model_validate(values)
    found = forecast_attack(config, 100, 10, 1, 1, None, None)
    clean, first, second, mine, _ = found.passes
    assert (first.name, second.name) == ("transfer:a", "transfer:b")
    assert (first.forwards, first.backwards) == (second.forwards, second.backwards)
    assert (clean.total, mine.total) == (1, 1)
    assert found.notes == ("what these ask of the model is not known, and not counted: mine.py:f",)
    straight = forecast_attack(config.model_copy(update={"gradient_of": "a:b"}), 100, 10, 1, 1, None, None)
    assert straight.passes_per_image == found.passes_per_image
    apgd = AttackConfig.model_validate({"name": "x", "attacks": ["apgd-ce"], "screen": 0})
    plain, smooth = (
        forecast_attack(apgd.model_copy(update={"gradient_of": of}), 100, 10, 1, 1, None, None).passes[1]
        for of in (None, "a:b")
    )
    assert smooth.forwards == plain.forwards + plain.backwards
    assert smooth.backwards == plain.backwards


def test_whose_an_attack_is() -> None:
    names = ("apgd-ce", "square", "transfer", "transfer:a", "m:f")
    assert [is_library(name) for name in names] == [True, True, False, False, False]
