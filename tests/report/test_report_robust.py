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
    assert (
        "PGD of 10 steps, Linf eps 0.03137 (8/255), 512 images, noise off: best 43.0% at epoch 2, last 1.0%" in text
    )
    assert "<strong>Warning:</strong> fast, it fell &lt;b&gt;deep&lt;/b&gt;." in text


def test_curves_of_two_attacks_are_in_two_plots(make_run: Callable[..., Any], tmp_path: Path) -> None:
    roots = []
    changes: dict[str, Any] = {"a": {}, "b": {}, "c": {"norm": "L2", "eps": 3.0}, "d": {"draws": 4}}
    for name, change in changes.items():
        run = make_run(name).trained()
        lines = [json.dumps(robust(step, 0.4) | {"noise": "fresh"} | change) for step in (10, 20)]
        run.metrics([*run.dir.metrics.read_text().splitlines(), *lines])
        roots.append(run.dir.root)
    page = write_report(roots, tmp_path / "out")
    text = page.read_text()
    titles = ["Linf eps 0.03137 (8/255), 512 images, noise fresh", "L2 eps 3, 512 images, noise fresh"]
    for title, ends in zip([*titles, f"{titles[0]}, mean of 4 draws"], ("a ends at 40; b", "c", "d"), strict=True):
        assert f"<figcaption>Robust validation during training: PGD of 10 steps, {title}</figcaption>" in text
        assert f"Robust accuracy, % by epoch: {ends} ends at 40." in text
    assert len(list(page.parent.glob("robust-validation*.png"))) == 3


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
