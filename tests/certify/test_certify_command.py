"""`kapdist certify` on the command line, and a run of kapdist's own: its noise, its folded form, its sigma."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from certify.linear import directory, settings
from torch import nn

from kapdist.certify.command import certify
from kapdist.certify.plan import sigmas_of
from kapdist.certify.run import merge_alone, plan_alone, run_certify, shard_alone
from kapdist.config import Config
from kapdist.config.certify import CertifyConfig
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.weights import save_weights
from kapdist.records.sealed import read_table
from kapdist.run.paths import RunDir

FEW = {"num_images": 4, "draws": 30, "selection_draws": 10, "threads": 1, "device": "cpu"}


@pytest.fixture
def run(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    """A run of a narrow ResNet-10 with averages and noise, as its training would leave it."""
    values = {
        "name": "run",
        "data": {"train": small_betons[0], "validation": small_betons[1]},
        "model": {"name": "resnet10", "num_classes": 10, "width": 0.125, "stem": "cifar"},
        "kap": {"pool_size": 3, "layout": "line", "noise_std": 0.3},
        "train": {"input_noise_std": 0.125},
    }
    config = Config.model_validate(values)
    made = RunDir(tmp_path / "run")
    made.root.mkdir()
    made.config.write_text(dump_config(config))
    save_weights(undecided(config), made.weights)
    return made.root


def undecided(config: Config) -> nn.Module:
    """Return a network that has learned nothing and changes its mind from one noisy image to the next."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)  # its first weights, too: of some draws every noisy image is of one class
        model = build_model(config.model, config.kap)
        for _ in range(20):  # statistics of its norms
            model.train()(torch.rand(16, 3, 32, 32))
        nn.init.normal_(model.fc.weight, std=5)
    return model.eval()


def asked(**fields: object) -> CertifyConfig:
    return CertifyConfig.model_validate(FEW | fields)


def written(run: Path, **train: object) -> None:
    config = load_config(Config, RunDir(run).config)
    changed = config.train.model_copy(update=train)
    RunDir(run).config.write_text(dump_config(config.model_copy(update={"train": changed})))


def test_the_command_on_a_run_needs_nothing_else(run: Path, kapdist) -> None:
    done = kapdist("certify", "run", *(f"{key}={value}" for key, value in FEW.items()))
    assert done.code == 0, done.output
    found = json.loads((run / "certificates" / "certificate" / "summary.json").read_text())
    assert [smoothed["sigma"] for smoothed in found["smoothed"]] == [0.125]
    assert found["num_images"] == 4
    assert "run/certificate: 4 images, alpha 0.001" in done.output
    assert "σ 0.125: accuracy" in done.output
    assert "this says nothing about the model with its noise on" in done.output


def test_folded_and_as_it_is_a_run_has_the_same_counts(run: Path) -> None:
    folded = plan_alone(run, asked(name="folded", sigma=0.4))
    assert folded.subject.model.folded
    run_certify(run, asked(name="folded", sigma=0.4))
    run_certify(run, asked(name="plain", sigma=0.4, fold=False))
    tables = [read_table(RunDir(run).certified(name).records) for name in ("folded", "plain")]
    assert (tables[0]["count"] - tables[1]["count"]).abs().max() <= 1  # rounding may turn a tie
    assert (tables[0]["count"] < FEW["draws"]).any()


def test_the_run_s_own_noise_is_a_part_of_the_smoothed_model(run: Path) -> None:
    plan = plan_alone(run, asked(noise="fresh"))
    assert plan.own_noise == "activation noise σ = 0.3"
    assert plan.notes[0].endswith("drawn anew in every draw: activation noise σ = 0.3")
    assert not plan.subject.model.folded
    tables = []
    for name, units in (("one", {}), ("two", {"chunk_size": 1, "unit_draws": 30})):
        run_certify(run, asked(name=name, noise="fresh", sigma=0.4, **units))
        tables.append(read_table(RunDir(run).certified(name).records))
    assert tables[0].equals(tables[1])
    run_certify(run, asked(name="off", sigma=0.4))
    off = read_table(RunDir(run).certified("off").records)
    assert (off["count"].sum(), off["label_count"].sum()) != (
        tables[0]["count"].sum(),
        tables[0]["label_count"].sum(),
    )


def test_a_model_that_never_saw_noisy_images_is_warned_about(run: Path) -> None:
    trained = plan_alone(run, asked(name="a", sigma=[0.1, 0.25]))
    assert "trained with input noise of 0.125, and is certified at 0.25" in " ".join(trained.notes)
    written(run, input_noise_std=0.0)
    never = plan_alone(run, asked(name="b", sigma=0.1))
    assert any("trained without input noise (train.input_noise_std = 0)" in note for note in never.notes)
    with pytest.raises(InputError, match="found none, and the run was trained without input noise"):
        sigmas_of(run, asked())


def test_plan_shards_and_merge_one_by_one(world, capfd: pytest.CaptureFixture[str]) -> None:
    values = settings(world).model_dump(mode="json", exclude_unset=True) | {"num_images": 6, "chunk_size": 2}
    model = values.pop("model")["factory"]
    words = [f"model.factory={model}", *(f"{key}={value}" for key, value in values.items())]
    certify(world.run, words, plan=True)
    assert json.loads(capfd.readouterr().out)["subject"]["num_images"] == 6
    for shard in range(2):
        certify(world.run, words, shard=shard, num_shards=2)
        assert capfd.readouterr().out == ""
    assert not directory(world).summary.exists()
    certify(world.run, words, merge=True, as_json=True)
    assert json.loads(capfd.readouterr().out)["num_images"] == 6
    with pytest.raises(InputError, match="one of them, found several"):
        certify(world.run, words, plan=True, merge=True)
    with pytest.raises(InputError, match="shard: expected a number from 0 to 1, found 2"):
        certify(world.run, words, shard=2, num_shards=2)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"draws": 100_000}, "draws = 300 as this was planned (or another name=), found 100000"),
        ({"alpha": 0.01}, "alpha = 0.001 "),
        ({"sigma": [0.25, 0.5]}, "sigma = (0.25,) "),
        ({"stop_radius": 0.2}, "stop_radius = None "),
        ({"num_images": 22}, "num_images = 6 "),
        ({"seed": 1}, "seed = 0 "),
        ({"noise": "fresh"}, "noise = 'off' "),
        ({"images": "first"}, "images = 'random' "),
    ],
)
def test_a_shard_and_a_merge_are_of_what_was_planned(world, written: dict[str, object], said: str) -> None:
    """Of what is not written the plan decides, and of what stands for all images or the run's sigma."""
    plan_alone(world.run, settings(world, num_images=6))
    with pytest.raises(InputError, match=re.escape(said)):
        shard_alone(world.run, settings(world, **{"num_images": 6} | written), 0, 1)
    few = {"name": "c", "model": {"factory": world.factory}, "num_images": 0, "sigma": None}
    shard_alone(world.run, CertifyConfig.model_validate(few), 0, 1)
    with pytest.raises(InputError, match=re.escape(said)):
        merge_alone(world.run, settings(world, **{"num_images": 6} | written))
    assert merge_alone(world.run, CertifyConfig.model_validate(few)).num_images == 6


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sigma=0", "greater than 0"),
        ("sigma=[0.1, 0]", "greater than 0"),
        ("sigma=[0.1, 0.1]", "each once"),
        ("alpha=0", "greater than 0"),
        ("alpha=0.6", "less than or equal to 0.5"),
        ("draws=0", "greater than or equal to 1"),
        ("stop_radius=0", "greater than 0"),
        ("draw=5", "draws"),
    ],
)
def test_wrong_settings_are_one_line(word: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(CertifyConfig, None, [word])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
