"""Robust validation on the page: its plot, what it was, and what it warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kapdist.records.metrics import read_metrics
from kapdist.report import write_report

ATTACK = {"norm": "Linf", "eps": 8 / 255, "attack_steps": 10, "noise": "off", "num_images": 512, "loss": 2.0}


def robust(step: int, accuracy: float, weights: str = "model") -> dict[str, Any]:
    found = {"accuracy": accuracy, "clean_accuracy": 0.8, "training_loss": 1.9, "weights": weights}
    return {"kind": "robust", "step": step, "epoch": step / 10, **ATTACK, **found}


ALARM = {
    "kind": "alarm",
    "step": 30,
    "epoch": 3.0,
    "name": "catastrophic overfitting",
    "text": "it fell <b>deep</b>",
}


def test_the_page_shows_robust_validation_and_its_alarms(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run("fast").trained()
    lines = run.dir.metrics.read_text().splitlines()
    run.metrics([*lines, *map(json.dumps, [robust(10, 0.4), robust(20, 0.43), robust(30, 0.01), ALARM])])
    page = write_report([run.dir.root, make_run("plain").trained().dir.root], tmp_path / "out")
    text = page.read_text()
    assert (page.parent / "robust-validation.png").stat().st_size > 1000
    assert "Robust accuracy, % by epoch: fast ends at 1." in text
    assert "PGD of 10 steps, Linf eps 0.03137, 512 images, noise off: best 43.0% at epoch 2, last 1.0%" in text
    assert "<strong>Warning:</strong> fast, it fell &lt;b&gt;deep&lt;/b&gt;." in text


def test_lines_that_a_resume_repeats_count_once_and_alarms_of_a_step_stand_side_by_side(tmp_path: Path) -> None:
    other = ALARM | {"name": "robust overfitting"}
    lines = [robust(10, 0.4), robust(20, 0.1), robust(20, 0.2), robust(20, 0.3, "ema"), ALARM, other, ALARM, {}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(path)
    assert [line["accuracy"] for line in found.withstood] == [0.3], "the moving average's"
    assert [line["accuracy"] for line in found.robust if line["weights"] == "model"] == [0.4, 0.2]
    assert sorted(line["name"] for line in found.alarm) == ["catastrophic overfitting", "robust overfitting"]
    assert found.num_unreadable == 1
