"""Where each value of a config comes from, against files whose lines are counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kapdist.config import AttackConfig, Config, flatten
from kapdist.config.file import CONFIGS, load_config, merged, read_layers
from kapdist.config.kinds import KINDS, kind_of
from kapdist.config.origins import Origin, Value, decides, lines_of, values_of
from kapdist.errors import InputError

BASE = """\
# a base
data: {train: train.beton,
       validation: test.beton}
optim:
  lr: 0.25
  momentum: 0.5
train:
  epochs: 5
"""
ABOVE = """\
base: base.yaml

optim:
  # its own
  lr: 0.125
model: {name: resnet18, num_classes: 10}
"""


@pytest.fixture
def above(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "above.yaml").write_text(ABOVE)
    return tmp_path / "above.yaml"


def test_each_value_has_the_line_that_decides_it(above: Path) -> None:
    found = values_of(Config, above, ["train.epochs=7"])
    base = above.with_name("base.yaml")
    expected = {
        "optim.lr": (0.125, f"{above}:5"),
        "optim.momentum": (0.5, f"{base}:6"),
        "data.train": ("train.beton", f"{base}:2"),
        "data.validation": ("test.beton", f"{base}:3"),
        "train.epochs": (7, "command line"),
        "model.num_classes": (10, f"{above}:6"),
        "seed": (0, "default"),
        "name": ("above", "file name"),
    }
    assert {key: (found[key].value, str(found[key].origin)) for key in expected} == expected


def test_the_values_are_those_of_the_config(above: Path) -> None:
    words = ["optim.name=adamw", "train.stall_minutes=30"]
    found = values_of(Config, above, words)
    assert {key: value.value for key, value in found.items()} == flatten(load_config(Config, above, words))


def test_a_default_that_follows_names_what_it_follows_from(above: Path) -> None:
    """optim.lr is written, so AdamW's own learning rate does not come; its weight decay does.

    A chain is told link by link: the other end of the ramp follows from the one that is written, the crop from it.
    """
    found = values_of(Config, above, ["optim.name=adamw", "data.max_resolution=64", "model.name=cnn"])
    assert found["optim.lr"].origin.kind == "file"
    assert found["optim.weight_decay"].origin == Origin("follows", keys=("optim.name",))
    assert found["data.min_resolution"].origin.keys == ("data.max_resolution",)
    assert found["data.crop"].origin.keys == ("data.min_resolution",)
    assert found["model.stem"].origin == Origin("follows", keys=("model.name",))


def test_the_eps_of_another_norm_names_the_norm(tmp_path: Path) -> None:
    path = tmp_path / "attack.yaml"
    path.write_text("norm: L2\n")
    assert values_of(AttackConfig, path)["eps"] == Value(0.5, Origin("follows", keys=("norm",)))
    assert values_of(AttackConfig, path, ["norm=Linf"])["eps"] == Value(4 / 255, Origin("default"))


def test_a_null_that_is_written_is_followed_like_none(above: Path) -> None:
    above.write_text(ABOVE + "data: {min_resolution: null, max_resolution: 64}\n")
    assert values_of(Config, above)["data.min_resolution"].origin.kind == "follows"


def test_one_value_for_a_section_and_keys_that_are_free(tmp_path: Path) -> None:
    path = tmp_path / "attack.yaml"
    path.write_text("eps: 8/255\ndata: other.beton\nmodel:\n  factory: net.py:make\n  arguments:\n    depth: 3\n")
    found = values_of(AttackConfig, path)
    assert found["data.beton"].origin == Origin("file", str(path), 2)
    assert found["model.arguments"].origin == Origin("file", str(path), 5)
    said = values_of(AttackConfig, path, ["model.arguments.depth=4"])["model.arguments"]
    assert (said.value, said.origin.kind) == ({"depth": 4}, "command line")


def test_an_interpolation_is_of_its_own_line(above: Path) -> None:
    above.write_text(ABOVE + "train:\n  log_every_steps: ${model.num_classes}\n")
    found = values_of(Config, above)["train.log_every_steps"]
    assert (found.value, found.origin.line) == (10, 8)
    written = {"optim": "${other}", "train": {"epochs": 3}, "name": "plain"}
    assert decides(written, "optim.lr")
    assert decides(written, "train.epochs")
    assert not decides(written, "train.batch_size")
    assert not decides(written, "name.first")


def test_lines_behind_anchors_and_merges() -> None:
    text = "one: &a {x: 1, y: 2}\ntwo:\n  <<: *a\n  y: 3\n'three': *a\n"
    assert lines_of(text) == {
        "one": 1,
        "one.x": 1,
        "one.y": 1,
        "two": 2,
        "two.x": 1,
        "two.y": 4,
        "three": 5,
        "three.x": 1,
        "three.y": 1,
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data: {train: a, validation: b}", "training"),
        ("eps: 1/255", "attack"),
        ("draws: 3\nflip: true", "evaluation"),
        ("sigma: 0.25", "certificate"),
        ("arms: {a: {}}\nseeds: 2", "study"),
    ],
)
def test_the_keys_say_what_kind_of_config_it_is(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    assert kind_of(path, merged(read_layers(path))) == kind
    assert set(KINDS) == {"training", "attack", "evaluation", "certificate", "study"}


def test_a_file_with_keys_of_no_config(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("name: big\npartition: gpu\nnodes: 2\n")  # a cluster's, of launch/
    with pytest.raises(InputError, match=r"a config \(training, .*found keys of none, such as 'partition'"):
        kind_of(path, merged(read_layers(path)))


@pytest.mark.parametrize(
    ("file", "kind", "found"),
    [
        ("attack.yaml", "training", "attack"),
        ("study.yaml", "training", "study"),
        ("kap.yaml", "attack", "training"),
        ("kap.yaml", "study", "training"),
        ("attack.yaml", "study", "attack"),
        ("corruptions.yaml", "training", "attack"),
    ],
)
def test_a_config_of_another_kind_is_refused_as_such(file: str, kind: str, found: str) -> None:
    path = CONFIGS / "fashion_mnist" / file
    with pytest.raises(InputError, match=rf"{file}: expected a config of kind {kind}, found one of kind {found}$"):
        load_config(KINDS[kind], path)


def test_one_strange_key_makes_no_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: a.beton, validation: b.beton}\nmodel: {name: cnn}\nversion: standard\n")
    with pytest.raises(InputError, match="version: expected a known key"):
        load_config(Config, path)
