"""`kapdist config show` and `diff`: what is printed means the same config, and differences are all that differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kapdist.cli import app
from kapdist.config.file import load_config
from kapdist.config.kinds import KINDS
from kapdist.environment import version_in_words
from kapdist.errors import InputError
from kapdist.overview.command import config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ("cifar10/kap_noise", "cifar10/trades", "imagenet/resnet50_16_kap_noise", "fashion_mnist/ensemble")


def run(*words: object) -> Result:
    return CliRunner().invoke(config, [str(word) for word in words])


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_is_the_config_and_its_lines_are_there(name: str, tmp_path: Path) -> None:
    path, words = CONFIGS / f"{name}.yaml", ("train.epochs=40", "optim.lr=1e-3")
    shown = run("show", path, *words)
    assert shown.exit_code == 0
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    model = KINDS["training"]
    assert load_config(model, tmp_path / "shown.yaml") == load_config(model, path, words)
    said = json.loads(run("show", path, "--json").stdout)
    places = {key: value["origin"] for key, value in said["values"].items() if value["origin"]["kind"] == "file"}
    assert len(places) > 10
    for key, place in places.items():
        line = Path(place["file"]).read_text().splitlines()[place["line"] - 1]
        assert key.rpartition(".")[2] in line


def test_an_attack_and_a_run_directory(tmp_path: Path) -> None:
    text = "eps: [2/255, 4/255]\neot: 4\nmodel: {arguments: {a: [1, x y]}, factory: f.py:g}\n"
    (tmp_path / "attack.yaml").write_text(text)
    shown = run("show", tmp_path / "attack.yaml").stdout
    assert "noise: fresh" in shown
    assert "# follows from eot" in shown
    (tmp_path / "again.yaml").write_text(shown)
    model = KINDS["attack"]
    assert load_config(model, tmp_path / "again.yaml") == load_config(model, tmp_path / "attack.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(run("show", CONFIGS / "cifar10/kap.yaml").stdout)
    assert run("diff", tmp_path / "run", CONFIGS / "cifar10/kap.yaml").exit_code == 0


def test_a_difference_is_every_key_that_differs_and_no_other(tmp_path: Path) -> None:
    base = CONFIGS / "cifar10/plain.yaml"
    other = tmp_path / "other.yaml"
    other.write_text(f"base: {base}\nname: mine\noptim: {{lr: 0.125}}\nkap: {{pool_size: 3}}\nseed: 0\n")
    done = run("diff", base, other, "--json")
    assert done.exit_code == 1
    found = {one["key"]: (one["first"], one["second"]) for one in json.loads(done.stdout)}
    assert found.keys() == {"optim.lr", "kap.pool_size"}
    assert found["optim.lr"][1] == {"value": 0.125, "origin": {"kind": "file", "file": str(other), "line": 3}}
    assert found["kap.pool_size"][0] == {"value": 1, "origin": {"kind": "default"}}
    words = run("diff", base, other).stdout
    assert "optim.lr" in words
    assert "0.125" in words


def test_equal_configs_of_two_names(tmp_path: Path) -> None:
    text = (CONFIGS / "cifar10/plain.yaml").read_text()
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: ", "#"))
    done = run("diff", tmp_path / "one.yaml", tmp_path / "two.yaml")
    assert done.exit_code == 0
    assert "the same values" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "absent.yaml"), "expected a config file, found nothing"),
        (("show", CONFIGS / "cifar10/plain.yaml", "optim.lrr=1"), "expected a known key"),
        (("show", CONFIGS / "cifar10/plain.yaml", "--kind", "nothing"), "--kind: expected one of training"),
        (("show", CONFIGS), "expected a config file, found nothing"),
    ],
)
def test_wrong_words_are_one_line(words: tuple[object, ...], said: str) -> None:
    error = run(*words).exception
    assert isinstance(error, InputError)
    assert said in str(error)


def test_the_version_is_one_line_and_no_command_is_needed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, version_in_words() + "\n")
    assert CliRunner().invoke(app, []).exit_code == 2


def test_configs_of_two_kinds_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "attack.yaml").write_text("eps: 1/255\n")
    error = run("diff", CONFIGS / "cifar10/plain.yaml", tmp_path / "attack.yaml").exception
    assert isinstance(error, InputError)
    assert "found attack" in str(error)
