"""Ranks that are started host by host: what they are told and find there is one thing, or they say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import Finished

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.config.training import dotted_keys
from kapdist.data.beton.manifest import manifest_path, read_manifest
from kapdist.data.beton.write import write_beton
from kapdist.data.sources import ArraySource
from kapdist.run.paths import RunDir
from kapdist.train import loop
from kapdist.train.alike import OF_A_HOST

Ranks = Callable[..., list[Finished]]

# A rank works in a folder of its own, as on a host of its own, and the last one has words of its own.
PROGRAM = """
import os, sys
from kapdist.cli import main
from kapdist.train import attempt
attempt.SEEN_SECONDS = 0.5
folder, last, *words = sys.argv[1:]
os.chdir(f"{folder}/host-{os.environ['RANK']}")
is_last = int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"])
sys.argv = ["kapdist", *words, *(last.split() if is_last else [])]
main()
"""


@pytest.fixture
def hosts(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    """A folder with those of three hosts, each with copies of two betons of its own."""
    for number in range(3):
        for beton in small_betons:
            (tmp_path / f"host-{number}").mkdir(exist_ok=True)
            for path in (beton, manifest_path(beton)):
                shutil.copy(path, tmp_path / f"host-{number}" / path.name)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def other_images(beton: Path) -> None:
    """Put as many other images of the same classes in the place of a beton."""
    known = read_manifest(beton)
    images = np.random.default_rng(0).integers(0, 256, (known.num_images, 32, 32, 3), dtype=np.uint8)
    write_beton(ArraySource("other", known.class_names, images, np.arange(known.num_images) % 10), beton)


def train_words(hosts: Path, tiny_config: Path) -> list[str]:
    own = ("data.train=train.beton", "data.validation=test.beton", f"runs_dir={hosts / 'runs'}", "train.epochs=1")
    return ["train", str(tiny_config), *own]


def refused(ends: list[Finished], said: str) -> None:
    """All leave with 2, and the last rank alone says why, in one line."""
    assert [end.code for end in ends] == [2] * len(ends), ends
    assert said in ends[-1].output, ends
    assert ends[-1].output.count("\n") == 1, ends
    assert all(end.output == "" for end in ends[:-1]), ends


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.batch_size=30", ": expected 20, as rank 0 has it, found 30"),
        ("name=another", "name of rank 2 on "),
    ],
)
def test_a_rank_that_is_told_something_else_says_so_before_anything_is_written(
    hosts: Path, tiny_config: Path, run_ranks: Ranks, word: str, said: str
) -> None:
    """Each rank's optimizer would take steps of its own, and weights drift apart without a word."""
    refused(run_ranks([str(hosts / "program.py"), str(hosts), word, *train_words(hosts, tiny_config)], 3), said)
    assert not (hosts / "runs").exists()


@pytest.mark.parametrize(("name", "key"), [("train", "data.train"), ("test", "data.validation")])
def test_a_host_with_other_images_says_so(
    hosts: Path, tiny_config: Path, run_ranks: Ranks, name: str, key: str
) -> None:
    other_images(hosts / "host-2" / f"{name}.beton")
    ends = run_ranks([str(hosts / "program.py"), str(hosts), "", *train_words(hosts, tiny_config)], 3)
    assert [end.code for end in ends] == [2] * 3, ends
    assert f"images of {key} of rank 2 on " in ends[2].output, ends
    assert not RunDir(hosts / "runs" / "tiny").plan.exists()


def test_how_a_host_does_it_and_where_its_images_lie_may_differ(
    hosts: Path, tiny_config: Path, run_ranks: Ranks
) -> None:
    beton = hosts / "host-1" / "moved.beton"
    shutil.copy(hosts / "host-1" / "train.beton", beton)
    shutil.copy(hosts / "host-1" / "train.beton.json", manifest_path(beton))
    words = "data.train=moved.beton data.batches_ahead=2 engine.device=cpu"
    train = [word for word in train_words(hosts, tiny_config) if not word.startswith("data.train=")]
    program = str(hosts / "program.py")
    # The last one's words come last, and none may be there twice.
    ends = run_ranks([program, str(hosts), words, *train, "data.backend=torch"], 2)
    assert [end.code for end in ends] == [0, 0], ends
    assert RunDir(hosts / "runs" / "tiny").done.exists()


@pytest.mark.parametrize("others", [False, True])
def test_a_run_directory_on_a_host_s_own_disk_is_none(
    hosts: Path, tiny_config: Path, run_ranks: Ranks, others: bool
) -> None:
    """The host may have one of that name, in which its ranks' parts of checkpoints would lie unseen."""
    own = hosts / "host-1" / "runs" / "tiny"
    if others:
        RunDir(own).rank_log(1, 0).parent.mkdir(parents=True)
    words = [word for word in train_words(hosts, tiny_config) if not word.startswith("runs_dir=")]
    ends = run_ranks([str(hosts / "program.py"), str(hosts), "", *words], 2)
    refused(ends, f"{own}: expected a directory that all ranks share (runs_dir), found another, or none, on ")
    run = RunDir(hosts / "host-0" / "runs" / "tiny")
    assert not any(path.exists() for path in (run.lock, run.plan, RunDir(own).lock))


def test_what_may_differ_is_a_key() -> None:
    assert set(dotted_keys(Config)) >= OF_A_HOST


def test_an_evaluation_is_one_thing_too(
    hosts: Path, tiny_config: Path, run_ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hosts)
    loop.train(load_config(Config, tiny_config, ["train.epochs=1", f"runs_dir={hosts / 'runs'}"]))
    run = RunDir(hosts / "runs" / "tiny")
    words = ["evaluate", str(run.root), "data=test.beton", "threads=1"]
    program = [str(hosts / "program.py"), str(hosts)]
    refused(run_ranks([*program, "flip=true", *words], 2), "flip of rank 1 on ")
    assert [end.code for end in run_ranks([*program, "workers=1", *words, "name=good"], 2)] == [0, 0]
    other_images(hosts / "host-1" / "test.beton")
    refused(run_ranks([*program, "", *words, "name=bad"], 2), "images of rank 1 on ")
    assert [path.name for path in run.evaluations.iterdir()] == ["good.json"]
