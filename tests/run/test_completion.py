"""What a shell is offered: a config's keys, by the completion that the shell itself would ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kapdist.config import Config, dotted_keys
from kapdist.run.completion import completions, keys_of


def test_every_key_is_offered_and_a_section_stands_for_its_own() -> None:
    for key in dotted_keys(Config):
        begun = completions(Config, key)
        assert f"{key}=" in begun or f"{key}." in begun or any(word.startswith(f"{key}.") for word in begun), key
    assert {"data.", "model.", "optim.", "seed=", "seed=0"} <= set(completions(Config, ""))
    assert completions(Config, "optim.mom") == ["optim.momentum=", "optim.momentum=0.9"]
    assert completions(Config, "nothing") == []


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("engine.name=", ["engine.name=ddp", "engine.name=deepspeed"]),
        ("engine.precision=b", ["engine.precision=bf16"]),
        ("engine.tf32=t", ["engine.tf32=true"]),
        ("optim.lr=", []),
    ],
)
def test_values_of_a_key_that_lists_them(begun: str, offered: list[str]) -> None:
    assert completions(Config, begun) == offered


def test_without_a_letter_the_shell_offers_files() -> None:
    assert keys_of("attack")("") == []


def test_the_shell_s_own_question(tmp_path: Path) -> None:
    asked = {"COMP_WORDS": "kapdist train mine.yaml optim.mom", "COMP_CWORD": "3"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'kapdist'; from kapdist.cli import main; main()"]
    environment = os.environ | asked | {"_KAPDIST_COMPLETE": "complete_bash"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["optim.momentum=", "optim.momentum=0.9"]
