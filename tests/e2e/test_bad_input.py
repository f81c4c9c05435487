"""What a user can get wrong: one line that names the place, exit code 2, no traceback."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kapdist import cli
from kapdist.models import MODELS
from kapdist.run.files import file_sha256

CONFIG = """
data: {{train: {beton}, validation: {beton}}}
model: {{num_classes: 10, width: 0.125}}
train: {{batch_size: 20, epochs: 1}}
optim: {{warmup_epochs: 0}}
"""
FACTORY = """
import torch
from torch import nn

def probabilities():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Softmax(dim=1))
"""


@pytest.fixture
def here(tmp_path: Path, small_betons: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a beton, a config, a run that has weights, and an attack config."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(small_betons[1], tmp_path / "data.beton")
    shutil.copy(f"{small_betons[1]}.json", tmp_path / "data.beton.json")
    (tmp_path / "train.yaml").write_text(CONFIG.format(beton="data.beton"))
    run = tmp_path / "runs" / "done"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(beton="data.beton") + "name: done\n")
    torch.manual_seed(0)
    save_file(MODELS["resnet18"](num_classes=10, width=0.125).state_dict(), run / "model.safetensors")
    attack = "{num_images: 6, chunk_size: 2, version: custom, attacks: [apgd-ce], threads: 1}"
    (tmp_path / "attack.yaml").write_text(attack)
    (tmp_path / "factory.py").write_text(FACTORY)
    return tmp_path


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run the command line in this process; return the one line that it must end with."""

    def refusal(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["kapdist", *command.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert caught.value.code == 2, printed
        lines = [line for line in printed.err.splitlines() if line.startswith("kapdist: ")]
        assert len(lines) == 1
        assert "Traceback" not in printed.err
        assert ": expected " in lines[0]
        assert ", found " in lines[0]
        return lines[0]

    return refusal


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def half_written(path: Path) -> None:
    """As a killed FFCV writer leaves it: the header is written last."""
    content = bytearray(path.read_bytes())
    content[:4096] = bytes(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, half_written], ids=["missing", "truncated", "half-written"])
@pytest.mark.parametrize(
    "command", ["data check data.beton", "train train.yaml", "attack plan runs/done attack.yaml"]
)
def test_a_broken_beton(here: Path, refusal, damage, command: str) -> None:
    damage(here / "data.beton")
    assert "data.beton" in refusal(command)


@pytest.mark.parametrize("command", ["data check data.beton", "train train.yaml"])
def test_a_flipped_bit_in_an_image(here: Path, refusal, command: str) -> None:
    flip(here / "data.beton")
    assert "data.beton: expected" in refusal(command)


def test_a_class_folder_without_images(here: Path, refusal) -> None:
    for name in ("cat", "dog"):
        (here / "photos" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(here / "photos" / "cat" / "1.png")
    assert "dog" in refusal("data write photos photos.beton")
    assert not (here / "photos.beton").exists()


def test_a_label_beyond_num_classes(here: Path, refusal) -> None:
    assert "num_classes" in refusal("train train.yaml model.num_classes=5 name=new")


def test_keys_and_values(here: Path, refusal) -> None:
    assert "nearest: train.epochs" in refusal("train train.yaml train.epoch=3")
    assert "greater than 0" in refusal("train train.yaml optim.lr=0")
    (here / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    assert "duplicate key seed" in refusal("train twice.yaml")


def test_a_run_directory_of_another_config(here: Path, refusal) -> None:
    found = refusal("train train.yaml name=done optim.lr=0.125")
    assert "runs/done: expected optim.lr = 0.5" in found
    assert found.endswith("found 0.125")


def test_a_mistake_does_not_take_the_name_of_a_run(here: Path, refusal) -> None:
    for word in ("data.train=absent.beton", "data.validation=absent.beton", "model.weights=absent.safetensors"):
        assert "absent" in refusal(f"train train.yaml name=new {word}")
        assert not (here / "runs" / "new" / "config.yaml").exists()
    (here / "runs" / "new" / "config.yaml").write_text((here / "train.yaml").read_text() + "seed: 5\n")  # submitted
    assert "absent" in refusal("train train.yaml name=new data.train=absent.beton")
    assert "seed: 5" in (here / "runs" / "new" / "config.yaml").read_text()
    assert not (here / "runs" / "new" / "LOCK").exists()


@pytest.fixture
def read_only(here: Path):
    """A read-only file system with a run in it."""
    folder = here / "ro"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: GPU boxes and containers without the right to mount")
    try:
        shutil.copytree(here / "runs" / "done", folder / "done")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_outputs_that_cannot_be_written(here: Path, refusal, read_only: Path) -> None:
    Image.new("RGB", (8, 8)).save(here / "dot.png")
    for name in ("cat", "dog"):
        (here / "photos" / name).mkdir(parents=True)
        shutil.copy(here / "dot.png", here / "photos" / name / "1.png")
    for command in (
        "train train.yaml name=new runs_dir=ro",
        "data write photos ro/photos.beton",
        "evaluate ro/done device=cpu threads=1",
        "attack plan ro/done attack.yaml",
        "attack run ro/done attack.yaml",
        "report runs/done --out ro/page",
    ):
        found = refusal(command)
        assert "ro/" in found, command
        assert found.endswith("expected a place that can be written, found Read-only file system"), command
    assert "Not a directory" in refusal("train train.yaml name=new runs_dir=train.yaml/runs")
    assert "data.beton" in refusal("report runs/done --out data.beton")


def test_weights_that_are_not_what_a_run_ended_with(here: Path, refusal) -> None:
    weights = here / "runs" / "done" / "model.safetensors"
    digest = file_sha256(weights)
    (here / "runs" / "done" / "DONE").write_text(json.dumps({"step": 4, "sha256": {weights.name: digest}}))
    flip(weights)
    for command in (
        "evaluate runs/done device=cpu threads=1",
        "attack plan runs/done attack.yaml",
        "report runs/done",
        f"train train.yaml name=new model.weights={weights}",
    ):
        found = refusal(command)
        assert "model.safetensors: expected" in found, command
        assert digest in found, command
        assert file_sha256(weights) in found, command


def test_initial_weights_that_are_not_finite(here: Path, refusal) -> None:
    state = MODELS["resnet18"](num_classes=10, width=0.125).state_dict()
    state["layer1.0.bn1.running_var"][3] = float("inf")
    save_file(state, here / "worse.safetensors")
    found = refusal("train train.yaml name=new model.weights=worse.safetensors")
    assert "worse.safetensors: expected finite weights" in found
    assert "layer1.0.bn1.running_var" in found


def test_weights_that_do_not_fit(here: Path, refusal) -> None:
    torch.manual_seed(0)
    save_file(MODELS["resnet18"](num_classes=10, width=0.25).state_dict(), here / "wide.safetensors")
    for command in ("train train.yaml name=new model.weights=", "attack plan runs/done attack.yaml model.weights="):
        found = refusal(command + "wide.safetensors")
        assert "conv1.weight" in found
        assert "(8, 3, 7, 7)" in found
        assert "(16, 3, 7, 7)" in found


def test_a_pickle_in_place_of_weights(here: Path, refusal) -> None:
    (here / "model.pkl").write_bytes(pickle.dumps({"weights": Path("x")}))
    assert "pickle" in refusal("attack plan runs/done attack.yaml model.weights=model.pkl")
    assert "pickle" in refusal("train train.yaml name=new model.weights=model.pkl")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("absent.py:build", "no such file"),
        ("no.such.package:build", "can be imported"),
        ("factory.py:absent", "no such name"),
        ("factory.py", "no colon"),
        ("factory.py:probabilities", "probabilities"),
    ],
)
def test_a_factory_that_gives_no_classifier(here: Path, refusal, factory: str, words: str) -> None:
    command = f"attack plan runs/mine attack.yaml data=data.beton model.factory={factory}"
    assert words in refusal(command)


@pytest.mark.parametrize("eps", ["0", "-8/255"])
def test_eps_that_is_not_positive(here: Path, refusal, eps: str) -> None:
    assert "greater than 0" in refusal(f"attack run runs/done attack.yaml eps={eps}")


def test_a_merge_with_chunks_that_are_missing_twice_or_foreign(here: Path, refusal, monkeypatch) -> None:
    quick = "attacks=[random-noise] random_draws=2"  # whatever the attack, chunks are chunks
    for name, seed in (("ours", 0), ("theirs", 1)):
        for command in (
            f"attack plan runs/done attack.yaml name={name} seed={seed} {quick}",
            f"attack shard runs/done/attacks/{name}",
        ):
            monkeypatch.setattr(sys, "argv", ["kapdist", *command.split()])
            run_main()
    ours, theirs = (here / "runs" / "done" / "attacks" / name / "chunks" for name in ("ours", "theirs"))
    first, second = sorted(ours.glob("*.parquet"))[:2]
    kept = first.read_bytes()

    first.unlink()
    assert "none of chunk 0" in refusal("attack merge runs/done/attacks/ours")
    shutil.copy(second, first)
    assert "chunk" in refusal("attack merge runs/done/attacks/ours")
    shutil.copy(theirs / first.name, first)
    assert "plan" in refusal("attack merge runs/done/attacks/ours")

    first.write_bytes(kept)
    run_merge(monkeypatch)
    assert pl.read_parquet(ours.parent / "records.parquet").height == 6
    assert json.loads((ours.parent / "summary.json").read_text())["num_images"] == 6


def run_main() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code in (0, None)


def run_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kapdist", "attack", "merge", "runs/done/attacks/ours"])
    run_main()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train.yaml --nodes 0", "--nodes: expected 1 or more, found 0"),
        ("train.yaml --gpus-per-node -8", "--gpus-per-node"),
        ("train.yaml --num-images 0", "--num-images"),
        ("train.yaml --nodes 30", "train.batch_size: expected at least 30"),
        ("train.yaml --num-images 7", "train.batch_size: expected at most the 7 images"),
        ("train.yaml data.train=absent.beton", "or --num-images M to plan without one, found no file"),
        ("train.yaml --images-per-second-per-rank 0", "--images-per-second-per-rank"),
        ("train.yaml --images-per-second-per-rank nan", "--images-per-second-per-rank"),
        ("train.yaml --run nowhere", "nowhere: expected a run directory"),
        ("train.yaml --shards 3", "--shards: expected train.yaml to be the config of an attack"),
        ("train.yaml train.epoch=1", "nearest: train.epochs"),
        ("train.yaml kap.pool_size=99", "kap"),
        ("absent.yaml", "absent.yaml: expected a config file"),
        ("attack.yaml --run nowhere", "nowhere"),
        ("attack.yaml", "num_classes"),
        ("attack.yaml --run runs/done --shards 0", "--shards: expected 1 or more, found 0"),
        ("attack.yaml --run runs/done --nodes 0", "--nodes"),
        ("attack.yaml --run runs/done --passes-per-second -1", "--passes-per-second"),
        ("attack.yaml --run runs/done --images-per-second-per-rank 1", "the config of a training run"),
        ("attack.yaml --run runs/done num_images=71", "num_images: expected at most the 70 images there are"),
        ("attack.yaml num_classes=10 num_images=0", "--num-images M"),
    ],
)
def test_plans_that_cannot_be(here: Path, refusal, command: str, words: str) -> None:
    assert words in refusal(f"forecast {command}")


def test_metrics_that_tell_no_rate(here: Path, refusal) -> None:
    (here / "runs" / "done" / "plan.json").write_text("{}")
    (here / "runs" / "done" / "metrics.jsonl").write_text("")
    assert "runs/done: expected a run with a plan and metrics" in refusal("forecast train.yaml --run runs/done")


def test_a_report_of_what_is_no_run(here: Path, refusal) -> None:
    assert "nowhere" in refusal("report nowhere")
