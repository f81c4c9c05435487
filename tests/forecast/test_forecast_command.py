"""`kapdist forecast`, against a run that was made: what it weighs on disk, how fast it was, what is printed."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kapdist import cli
from kapdist.models import MODELS
from kapdist.run.paths import RunDir

IMAGES = ("data", "classes", "validation")  # what plan.json says of them besides the plan


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `kapdist forecast WORDS` in this process, where runs/ is that of tmp_path; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def printed(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["kapdist", "forecast", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code in (0, None)
        return capsys.readouterr().out

    return printed


@pytest.fixture
def plan(printed: Callable[..., str]) -> Callable[..., dict]:
    """The same, as JSON."""
    return lambda *words: json.loads(printed(*words, "--json"))


def test_a_training_run_is_what_its_plan_said(tiny_config: Path, kapdist: Callable, plan: Callable) -> None:
    words = ["train.checkpoint_every_steps=1", "train.batch_size=65", "train.keep_checkpoints=9"]
    words += ["train.log_every_steps=1", "model.width=0.25"]
    before = plan(tiny_config, *words)
    assert (before["rate"], before["hours"]) == (None, None)
    assert before["plan"]["num_images"] == 130  # the beton's

    assert kapdist("train", tiny_config, *words).code == 0
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    described = json.loads(run.plan.read_text())
    assert before["plan"] == {key: value for key, value in described.items() if key not in IMAGES}

    after = plan(tiny_config, *words)
    saved = sorted(run.checkpoints.glob("step-*"))
    expected = after["checkpoints"]
    assert len(saved) == expected["writes"] == described["total_steps"] - 1
    assert_weighs(saved[-1], expected)
    rates = [line["images_per_second"] for line in lines(run) if line["kind"] == "train"]
    assert after["rate"]["images_per_second"] == statistics.median(rates)
    assert after["hours"] == pytest.approx(2 * 130 / statistics.median(rates) / 3600)
    two = plan(tiny_config, *words, "--gpus-per-node", 2)  # where both keep the rate
    assert two["hours"] == pytest.approx(after["hours"] / 2)


def lines(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def assert_weighs(checkpoint: Path, expected: dict) -> None:
    """The files are the tensors, and under a kilobyte of names and headers for each of them."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    for name, planned in (("shared.pt", expected["shared_bytes"]), ("rank-0.pt", expected["bytes_per_rank"])):
        content = torch.load(checkpoint / name, weights_only=True)
        found = files[name]["bytes"]
        assert planned - 64 <= found <= planned + 1024 * (2 + count_tensors(content)), name
    assert expected["total_bytes"] == expected["shared_bytes"] + expected["bytes_per_rank"]


def count_tensors(value: object) -> int:
    if isinstance(value, dict):
        return sum(count_tensors(item) for item in value.values())
    return int(isinstance(value, torch.Tensor))


def test_an_attack_is_planned_with_and_without_its_run(tmp_path: Path, small_betons, plan: Callable) -> None:
    run = tmp_path / "runs" / "done"
    run.mkdir(parents=True)
    data = f"data: {{train: {small_betons[0]}, validation: {small_betons[1]}}}\n"
    (run / "config.yaml").write_text(data + "model: {num_classes: 5, width: 0.125}\n")
    save_file(MODELS["resnet18"](num_classes=5, width=0.125).state_dict(), run / "model.safetensors")
    attack = tmp_path / "attack.yaml"
    attack.write_text("{num_images: 0, chunk_size: 8}")

    found = plan(attack, "--run", run, "--shards", 4, "--gpus-per-node", 2)
    assert (found["num_images"], found["num_chunks"], found["chunks_per_shard"]) == (70, 9, [2, 3])
    targeted = next(attack for attack in found["passes"] if attack["name"] == "apgd-t")
    assert targeted == {"name": "apgd-t", "forwards": 410, "backwards": 404}  # 4 targets: all there are
    assert (found["worst_hours"], found["passes_per_second"]) == (None, None)

    alone = plan(attack, "num_classes=5", "--num-images", 70, "--shards", 4, "--passes-per-second", 100)
    assert alone["passes"] == found["passes"]
    assert alone["worst_hours"] == pytest.approx((8 + 8 + 6) * alone["passes_per_image"] / 100 / 3600)


def test_what_a_reader_sees(tiny_config: Path, printed: Callable[..., str]) -> None:
    words = ["--num-images", 1_281_167, "--nodes", 4, "--gpus-per-node", 8, "model.name=resnet50"]
    words += ["model.num_classes=1000", "model.width=1", "train.batch_size=1024", "train.accumulation_steps=1"]
    seen = printed(tiny_config, *words)
    for figure in ("4 nodes x 8 GPUs = 32 ranks", "25,557,032", "1,252", "97.5 MiB", "188.9 MiB", "not known"):
        assert figure in seen
    attack = tiny_config.with_name("attack.yaml")
    attack.write_text("{num_images: 5000}")
    seen = printed(attack, "num_classes=1000", "--shards", 300, "--passes-per-second", 1000)
    for figure in ("Attack in 300 shards, 300 at a time", "79", "0 to 1", "1,829", "5,004", "48,960,000 at most"):
        assert figure in seen
    assert "with nothing to do, as there are 79 chunks: 221" in seen
