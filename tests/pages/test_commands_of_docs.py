"""The commands of the tutorial, the how-to guides and the explanations: the command line takes each one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from kapdist import cli
from kapdist.config import Config
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.study.design import make_design
from launch.cluster import load_cluster, split_words
from tools.pages.commands import help_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    DOCS / "index.md",
    DOCS / "tutorial.md",
    *sorted(DOCS.glob("how-to/*.md")),
    *sorted(DOCS.glob("explanation/*.md")),
]
BASH = re.compile(r"```bash\n(.*?)```", flags=re.DOTALL)
FILE = re.compile(r"```yaml\n# (\S+)\n(.*?)```", flags=re.DOTALL)
RANKS = "torchrun --standalone --nproc-per-node 2 -m kapdist.cli"
# Neither of kapdist nor of launch/: run by tests/e2e/test_quickstart.py, tests/slurm, or a shell.
OTHERS = ("make ", "source ", "cp ", "tools/slurm_sandbox.py ")


def commands(text: str) -> list[str]:
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in BASH.findall(text) for line in block.splitlines()]
    return [line.replace(RANKS, "kapdist") for line in lines if line]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs and examples, and every file that a page writes."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "cluster.yaml").symlink_to(
        ROOT / "configs" / "cluster" / "gpu_nodes.yaml"
    )  # how-to/cluster.md copies it
    for page in PAGES:
        for name, text in FILE.findall(page.read_text()):
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def takes(words: list[str]) -> None:
    """Parse a command of kapdist as it does, and load the configs and words that it names."""
    command: Any = typer.main.get_command(cli.app)
    names = []
    while hasattr(command, "commands"):
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    values = command.make_context(names[-1], words).params
    match names:
        case ["train"]:
            load_config(Config, values["config"], values["overrides"] or [])
        case ["evaluate"]:
            load_config(EvaluationConfig, None, values["overrides"] or [])
        case ["attack", "run" | "plan" | "sanity" | "corruptions"]:
            cli.attack_config(values["words"], name="attack")
        case ["certify"]:
            load_config(CertifyConfig, None, values["words"])
        case ["study", "plan" | "run"]:
            make_design(values["file"], values["overrides"] or [])
        case ["data" | "report" | "forecast" | "topography" | "attack" | "study" | "export", *_]:
            pass  # words that are paths and options alone
        case _:
            raise AssertionError(f"what does {names} load?")


def launches(path: Path, words: list[str]) -> None:
    """Look the options of a command of launch/ up in its help, and load the configs and words that it names."""
    told = help_of(path)
    assert [word for word in words if word.startswith("--") and word not in told] == []
    keys, cluster_keys = split_words([word for word in words if "=" in word])
    cluster = Path(words[words.index("--cluster") + 1]) if "--cluster" in words else None
    load_cluster(cluster, cluster_keys)
    if path.stem == "train":
        load_config(Config, Path(words[0]), keys)
    elif path.stem == "attack":
        cli.attack_config([words[1], *keys], name="attack")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_command_of_a_page_is_taken(page: Path, checkout: Path) -> None:
    for line in commands(page.read_text()):
        first, *words = shlex.split(line)
        if first == "kapdist":
            takes(words)
        elif first == "python" and words[0].startswith("launch/"):
            launches(ROOT / words[0], words[1:])
        else:
            assert line.startswith(OTHERS), line


@pytest.mark.parametrize(
    "line",
    ["train photos.yaml optim.rate=1", "attack run runs/photos attack.yaml epsilon=1", "study plan absent.yaml"],
)
def test_a_wrong_word_is_seen(line: str, checkout: Path) -> None:
    with pytest.raises(InputError):
        takes(shlex.split(line))


@pytest.mark.parametrize("line", ["data write photos", "attack shard runs/kap --shards 3", "report"])
def test_a_wrong_option_is_seen(line: str, checkout: Path) -> None:
    with pytest.raises(cli.UsageError):
        takes(shlex.split(line))


def test_the_tutorial_s_commands_are_the_readme_s() -> None:
    """tests/e2e/test_readme.py runs these."""
    readme = [*commands((ROOT / "README.md").read_text())]
    assert [line for line in commands((DOCS / "tutorial.md").read_text()) if line not in readme] == []


@pytest.fixture
def photographs(checkout: Path) -> Path:
    """Ten images of each of four classes."""
    random = np.random.default_rng(0)
    for name, level in {"bird": 0, "cat": 40, "dog": 80, "horse": 120}.items():
        (checkout / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(level, level + 120, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(checkout / "photos" / name / f"img_{number:04d}.jpg")
    return checkout / "photos"


SMALLER = {
    "photos.yaml": "photos.yaml data.resolution=32 train.epochs=1 train.batch_size=8 engine.threads=1",
    "attack.yaml": "attack.yaml num_images=4 num_shards=1 attacks=[apgd-ce] threads=1",
}


@pytest.mark.slow
def test_photographs_become_a_verdict(checkout: Path, kapdist: Callable, photographs: Path) -> None:
    """The commands of how-to/own-data.md up to the first attack, as they stand there, on few and small images."""
    lines = commands((DOCS / "how-to" / "own-data.md").read_text())
    attack = next(number for number, line in enumerate(lines) if line.startswith("kapdist attack run"))
    for line in lines[: attack + 1]:
        if "name=" in line:
            continue  # the same training, of what it is compared with
        for file, words in SMALLER.items():
            line = line.replace(file, words)
        done = kapdist(*shlex.split(line)[1:])
        assert done.code == 0, (line, done.output)
    assert (checkout / "runs" / "photos" / "attacks" / "attack" / "summary.json").exists()
