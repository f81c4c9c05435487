"""Wrong words on the command line itself: exit code 2, one line on standard error, nothing on standard output."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kapdist import cli
from kapdist.config import AttackConfig, Config, Section, dotted_keys
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.models import MODELS

CONFIG = """
data: {train: absent.beton, validation: absent.beton}
model: {num_classes: 10, width: 0.125}
name: tiny
"""
# What each command reads, with a beton that is not there: whatever else is written, there is something wrong.
COMMANDS: dict[str, tuple[list[str], type[Section], str]] = {
    "train": (["train", "x.yaml"], Config, CONFIG),
    "forecast": (["forecast", "x.yaml"], Config, CONFIG),
    "evaluate": (["evaluate", "run"], EvaluationConfig, ""),
    "certify": (["certify", "run", "x.yaml"], CertifyConfig, "data: absent.beton\nsigma: 0.25\n"),
    "attack plan": (["attack", "plan", "run", "x.yaml"], AttackConfig, "num_images: 0\ndata: absent.beton\n"),
    "attack run": (["attack", "run", "run", "x.yaml"], AttackConfig, "num_images: 0\ndata: absent.beton\n"),
    "attack sanity": (["attack", "sanity", "run", "x.yaml"], AttackConfig, "data: absent.beton\n"),
    "attack corruptions": (["attack", "corruptions", "run", "x.yaml"], AttackConfig, "data: absent.beton\n"),
}
PIECES = [
    *"~:[]{},'\"&*!|>%@`#?-=.\t\\ ",
    *("<<", "---", "${", "${name}", "${oc.env:X}", "!!float", "!!set", "!!int", "&a", "*a", "???", "\n", ": ", "é"),
    *(
        "true",
        "null",
        ".nan",
        "-.inf",
        "1e999",
        "9" * 5000,
        "0x",
        "08",
        "-1",
        "1_0",
        "\udcff",
        "\u2028",
        "\x85",
        "x",
    ),
    *("name", "seed", "data", "train", "lr", "base", "model", "a" * 120, "[" * 50, "17", "0.5", "off"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run whose betons are gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(CONFIG.replace("tiny", "run"))
    torch.manual_seed(0)
    save_file(MODELS["resnet18"](num_classes=10, width=0.125).state_dict(), tmp_path / "run" / "model.safetensors")
    return tmp_path


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run the command line in this process; return the one line that it ends with."""

    def refusal(words: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["kapdist", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return the_line(words, caught.value.code, out, err)

    return refusal


def the_line(words: list[str], code: object, out: str, err: str) -> str:
    assert (code, out) == (2, ""), (words, code, out, err)
    assert err.startswith("kapdist: "), (words, err)
    assert err.endswith("\n"), (words, err)
    assert len(err.splitlines()) == 1, (words, err)
    return err


def written(chance: random.Random, model: type[Section], start: str) -> tuple[str, list[str]]:
    """Return a file and words, of which some are as they should be but for one place."""
    keys = [*dotted_keys(model), *PIECES]
    file = start + "".join(chance.choices(PIECES, k=chance.randrange(8))) * chance.randrange(2)
    words = [
        f"{chance.choice(keys)}={''.join(chance.choices(PIECES, k=chance.randrange(3)))}"
        for _ in range(chance.randrange(3))
    ]
    return file, words


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_written_ends_in_one_line(here: Path, refusal, command: str) -> None:
    before, model, start = COMMANDS[command]
    chance = random.Random(command)
    for _ in range(20):
        file, words = written(chance, model, start)
        (here / "x.yaml").write_bytes(file.encode(errors="surrogatepass"))
        refusal([*before, *[word for word in words if not word.startswith("-")]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing", "command: No such command 'nothing'"),
        ("attack nothing", "attack: No such command 'nothing'"),
        ("attack shard", "attack shard: Missing argument"),
        (
            "attack shard x --shard one",
            "attack shard: Invalid value for '--shard': Input should be a valid integer",
        ),
        ("attack shard x y", "attack shard: Got unexpected extra argument"),
        ("forecast x.yaml --node 3", "forecast: No such option: --node"),
        ("--nothing", "command: No such option: --nothing"),
        ("data write x", "data write: Missing argument"),
        ("report", "report: Missing argument"),
    ],
)
def test_words_that_no_command_takes(here: Path, refusal, words: str, said: str) -> None:
    assert said in refusal(words.split())


def test_the_same_of_processes(here: Path) -> None:
    (here / "x.yaml").write_text(CONFIG)
    for words in (
        ["train", "x.yaml", "train.epochs=" + "9" * 5000],
        ["forecast", "x.yaml", b"name=\xff"],
        ["attack", "plan", "run", "x.yaml", "eps=!!float abc"],
    ):
        command = [sys.executable, "-m", "kapdist.cli", *words]
        done = subprocess.run(command, capture_output=True, timeout=300)
        the_line([str(word) for word in words], done.returncode, done.stdout.decode(), done.stderr.decode())


# A place that is below a file, is too long in one word or in all, is a folder or leads nowhere.
PLACES = ["x.yaml/below", "a" * 300, "/".join(["a" * 200] * 30), "dangling", "dangling/below", "/proc/none"]


@pytest.mark.parametrize(
    "place", PLACES, ids=["below a file", "long word", "long path", "dangling", "below dangling", "proc"]
)
def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(here: Path, refusal, place: str) -> None:
    (here / "x.yaml").write_text(CONFIG)
    (here / "dangling").symlink_to("/dev/null/nothing")
    for words in (
        ["train", "x.yaml", f"runs_dir={place}"],
        ["data", "write", "absent", f"{place}/x.beton"],
        ["data", "write", "absent", place] if place != "dangling" else ["data", "write", "absent", "run"],
        ["report", "absent", "--out", place],
        ["attack", "export", "absent", "--out", place],
    ):
        line = refusal(words)
        assert "expected a place that can be written" in line or "a folder" in line, words
        assert "absent" not in line, words


BELOW_A_RUN = {
    "train x.yaml name=run runs_dir=.": [
        "checkpoints",
        "attempts",
        "model.safetensors/x",
        "DONE/x",
        "metrics.jsonl/x",
    ],
    "evaluate run": ["evaluations", "evaluations/evaluation.json/x"],
    "attack plan run y.yaml": ["attacks", "attacks/y", "attacks/y/plan.json/x"],
    "attack run run y.yaml": ["attacks", "attacks/y", "attacks/y/summary.json/x", "attacks/worst_case.json/x"],
    "attack sanity run y.yaml": ["attacks", "attacks/y", "attacks/y/sanity.json/x"],
    "attack corruptions run y.yaml": [
        "corruptions",
        "corruptions/y",
        "corruptions/y/cells",
        "corruptions/y/summary.csv/x",
    ],
}


@pytest.mark.parametrize("command", BELOW_A_RUN)
def test_a_file_in_the_place_of_a_folder_of_a_run(here: Path, refusal, command: str) -> None:
    """And a folder in the place of a file: the line names it, not the beton that is not there either."""
    (here / "x.yaml").write_text(CONFIG)
    (here / "y.yaml").write_text("{}")
    for name in BELOW_A_RUN[command]:
        kept = here / "kept"
        shutil.copytree(here / "run", kept)
        file = here / "run" / name
        if file.parent.is_file():
            file.parent.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        line = refusal(command.split())
        assert f"run/{name.removesuffix('/x')}" in line, name
        assert "beton" not in line, name
        shutil.rmtree(here / "run")
        kept.rename(here / "run")
