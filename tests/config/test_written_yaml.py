"""What kapdist writes as YAML is read again as the same values, text that looks like a number too."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from kapdist.config import Config
from kapdist.config.file import dump_config, load_config
from kapdist.config.plain_yaml import dump, parse
from kapdist.overview.configs import entry
from kapdist.study.settings import word_of

CONFIG = "data: {train: train.beton, validation: test.beton}\n"
# Numbers to us, text to YAML 1.1, which PyYAML writes by.
LOOK_LIKE_NUMBERS = ["1e-3", "2E5", "08", "049", "+099", "0o17", "+.5", "-.25", ".4e8", "1_0e5", "123e456"]


@pytest.mark.parametrize("name", ["1e-3", "08", "2e5"])
def test_a_run_may_be_named_like_a_number(name: str, tmp_path: Path) -> None:
    """As a sweep names its files; its config.yaml is what continues, attacks and exports it."""
    (tmp_path / f"{name}.yaml").write_text(CONFIG)
    config = load_config(Config, tmp_path / f"{name}.yaml")
    assert config.name == name
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(Config, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", LOOK_LIKE_NUMBERS)
def test_text_stays_text(text: str, tmp_path: Path) -> None:
    arguments = f"model: {{factory: 'm.py:f', arguments: {{a: '{text}', b: ['{text}'], '{text}': 1}}}}\n"
    (tmp_path / "run.yaml").write_text(CONFIG + arguments)
    config = load_config(Config, tmp_path / "run.yaml")
    assert config.model.arguments == {"a": text, "b": [text], text: 1}
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(Config, tmp_path / "config.yaml").model.arguments == config.model.arguments
    shown: Any = parse(entry("key", [text, {"inner": text}]), "shown")
    assert shown == {"key": [text, {"inner": text}]}


def test_any_value_is_read_as_it_was_written() -> None:
    chance = random.Random(0)
    signs = "0123456789eE+-._oxbncaf:{}[],&*!#|>@`'\"% \t\n=<?~"
    for _ in range(5000):
        text = "".join(chance.choices(signs, k=chance.randint(0, 7)))
        real = chance.uniform(-1, 1) * 10 ** chance.randint(-300, 300)
        number = chance.choice([real, chance.randint(-(2**63), 9)])
        values = {"text": text, "list": [text, number, None, True], text: {"number": number}}
        again = parse(dump(values), "written")
        assert again == values
        assert type(again["list"][1]) is type(number)


@pytest.mark.parametrize(
    "value",
    [
        *LOOK_LIKE_NUMBERS,
        "8",
        "null",
        "off",
        "",
        "a #b",
        "[a",
        "a: b",
        "*",
        "a\nb",
        "8/255",
        "a 😀",
        0.5,
        ["08", "é"],
    ],
)
def test_a_word_means_its_value(value: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG + "model: {factory: 'm.py:f'}\n")
    config = load_config(Config, tmp_path / "run.yaml", [word_of("model.arguments.a", value)])
    assert config.model.arguments == {"a": value}
    assert type(config.model.arguments["a"]) is type(value)


def test_other_values_are_written_as_before(tmp_path: Path) -> None:
    """Or a config that nobody changed would be another file."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    values = load_config(Config, tmp_path / "run.yaml").model_dump(mode="json")
    assert dump(values) == yaml.safe_dump(values, sort_keys=False)
