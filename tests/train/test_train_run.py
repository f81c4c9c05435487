"""Whole runs: real betons, real ranks, the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kapdist.models import MODELS
from kapdist.run.files import file_sha256
from kapdist.run.paths import RunDir


def metrics(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_leaves_everything_that_a_reader_needs(tiny_config: Path, run_ranks, world_size: int) -> None:
    cold = world_size == 1  # two start cold in tests/slurm/test_slurm_words.py
    ends = run_ranks(["-m", "kapdist.cli", "train", str(tiny_config)], world_size, cold=cold)
    assert [end.code for end in ends] == [0] * world_size, ends
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    for path in (run.config, run.plan, run.environment, run.weights, run.done, run.tensorboard):
        assert path.exists(), path
    assert not run.failed.exists()
    mask = os.umask(0)
    os.umask(mask)
    files = [path for path in run.root.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}
    recorded = json.loads(run.done.read_text())["sha256"]
    assert recorded == {path.name: file_sha256(path) for path in run.results if path.exists()}
    assert set(recorded) >= {run.weights.name, run.best_weights.name, run.config.name, run.metrics.name}
    assert not run.lock.exists()
    assert all(run.rank_log(1, rank).exists() for rank in range(world_size))
    assert "peak memory per rank" in ends[0].output
    assert "model.num_classes" not in ends[0].output, "there are as many classes as logits"

    lines = metrics(run)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [3, 6, 9, 12, 14]
    evaluated = [line for line in lines if line["kind"] == "evaluate"]
    assert [(line["step"], line["num_images"], line["weights"]) for line in evaluated] == [
        (7, 70, "ema"),
        (14, 70, "ema"),
    ]
    assert len(lines[-1]["peak_memory_bytes"]) == world_size

    weights = load_file(run.weights)
    plain = MODELS["resnet10"](num_classes=10, width=0.125)
    plain.load_state_dict(weights)  # unaveraged weights under torchvision's names
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_network_learns_its_images(tiny_config: Path, kapdist) -> None:
    """Without noise and augmentation 130 images are learnt by heart."""
    calm = ["kap.noise_std=0", "train.input_noise_std=0", "data.flip=false", "data.translate=0"]
    calm += ["optim.label_smoothing=0", "optim.ema_decay=0", "train.epochs=12", "train.log_every_steps=7"]
    assert kapdist("train", tiny_config, *calm).code == 0
    losses = [line["loss"] for line in metrics(RunDir(tiny_config.parent / "runs" / "tiny")) if "lr" in line]
    assert losses[-1] < losses[0] / 3


def test_a_finished_run_is_left_alone_by_itself_and_by_another_config_and_its_config_reproduces_it(
    tiny_config: Path, kapdist
) -> None:
    words = ["train.epochs=1", "seed=3"]
    assert kapdist("train", tiny_config, *words).code == 0
    runs = tiny_config.parent / "runs"
    before = (runs / "tiny" / "model.safetensors").read_bytes()
    again = kapdist("train", tiny_config, *words)
    assert again.code == 0
    assert "is done, there is nothing to do" in again.output

    other = kapdist("train", tiny_config, "train.epochs=2", "seed=3")
    assert other.code == 2
    assert "train.epochs = 1 as this run began" in other.output
    assert (runs / "tiny" / "model.safetensors").read_bytes() == before

    assert kapdist("train", runs / "tiny" / "config.yaml", "name=again").code == 0
    first, second = (load_file(runs / name / "model.safetensors") for name in ("tiny", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_validation_on_images_of_the_training_is_an_alarm(
    tiny_config: Path, small_betons: tuple[Path, Path], kapdist
) -> None:
    """As of a --held-out that was forgotten, or of two shares: once, behind the first evaluation."""
    words = f"data.validation={small_betons[0]}", "model.num_classes=12", "robust.eps=8/255"
    end = kapdist("train", tiny_config, *words)
    assert end.code == 0
    assert end.output.count("robust.eps says nothing: robust.every_epochs is 0") == 1
    assert end.output.count("the images have 10 classes, the network 12 (model.num_classes)") == 1
    found = [line for line in metrics(RunDir(tiny_config.parent / "runs" / "tiny")) if line["kind"] == "alarm"]
    assert [(line["step"], line["name"]) for line in found] == [(7, "images in both")]
    assert end.output.count("130 of 130 validation images are in the training") == 1


def test_a_loss_that_is_not_finite_fails_the_run(tiny_config: Path, kapdist) -> None:
    end = kapdist("train", tiny_config, "optim.lr=1e30", "optim.warmup_epochs=0")
    assert end.code == 1
    assert "rank 0 failed: FloatingPointError: the loss is nan at step" in end.output
    assert end.output.splitlines()[-1].startswith("kapdist: the loss is nan at step")
    assert "Traceback" not in end.output  # FAILED has it
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    assert "FloatingPointError" in run.failed.read_text()
    assert not run.done.exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lrr=1"], "nearest: optim.lr"),
        (["model.num_classes=9"], "num_classes"),
        (["data.resolution=64"], "data.resolution"),
        (["data.train=absent.beton"], "absent.beton"),
        (["train.batch_size=1000"], "train.batch_size: expected at most the 130 images"),
        (["kap.pool_size=99"], "kap"),
        (["model.weights=absent.safetensors"], "absent.safetensors"),
        (["data.workers=1000"], "workers"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tiny_config: Path, kapdist, overrides, words: str) -> None:
    end = kapdist("train", tiny_config, *overrides)
    assert end.code == 2, end.output
    assert words in end.output
    assert end.output.count("\n") == 1
    assert end.output.startswith("kapdist: ")


def test_wrong_input_is_said_once_by_two_ranks(tiny_config: Path, run_ranks) -> None:
    ends = run_ranks(["-m", "kapdist.cli", "train", str(tiny_config), "data.train=absent.beton"], 2)
    assert [end.code for end in ends] == [2, 2]
    assert "".join(end.output for end in ends).count("absent.beton") == 1
