from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest

from kapdist.errors import InputError
from kapdist.records import sealed
from kapdist.report.reading import read_runs

ONE_BROKEN = {"apgd-ce": 1}


def train(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": step / 10, "loss": loss}


def evaluate(step: int, top1: float, weights: str = "model") -> dict[str, Any]:
    line = {"kind": "evaluate", "step": step, "epoch": step / 10, "top1": top1}
    return line | {"num_images": 100, "weights": weights}


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_later_of_two_overlapping_lines_wins(make_run: Callable[..., Any]) -> None:
    lines = [train(5, 1.0), train(10, 0.9), evaluate(10, 0.1), train(15, 0.8)]
    resumed = [train(8, 0.95), train(10, 0.7), evaluate(10, 0.2)]
    run = make_run("run").metrics([*lines, *resumed])
    metrics = read_runs([run.dir.root])[0].metrics
    assert [(line["step"], line["loss"]) for line in metrics.train] == [(5, 1.0), (8, 0.95), (10, 0.7)]
    assert [line["top1"] for line in metrics.evaluate] == [0.2]


def test_the_exported_weights_are_the_ones_shown(make_run: Callable[..., Any]) -> None:
    run = make_run("run").metrics([evaluate(10, 0.5), evaluate(10, 0.6, "ema"), evaluate(20, 0.7, "ema")])
    assert [line["top1"] for line in read_runs([run.dir.root])[0].metrics.shown] == [0.6, 0.7]


def test_a_torn_line_is_counted_and_the_others_are_read(make_run: Callable[..., Any]) -> None:
    run = make_run("run").metrics([train(1, 1.0), '{"kind": "train", "st', '{"kind": "train"}', "3", train(2, 0.5)])
    metrics = read_runs([run.dir.root])[0].metrics
    assert (len(metrics.train), metrics.num_unreadable) == (2, 3)


def test_labels_take_as_many_parents_as_tell_runs_apart(make_run: Callable[..., Any]) -> None:
    roots = [make_run(f"{folder}/{name}").dir.root for folder, name in (("a", "kap"), ("b", "kap"), ("b", "plain"))]
    assert [run.label for run in read_runs(roots)] == ["a/kap", "b/kap", "b/plain"]


def test_a_run_that_is_named_twice_is_read_once(make_run: Callable[..., Any]) -> None:
    root = make_run("run").dir.root
    assert len(read_runs([root, root / ".." / "run"])) == 1


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a run directory, found no config"):
        read_runs([tmp_path])
    with pytest.raises(InputError, match="a run directory, found nothing"):
        read_runs([tmp_path / "absent"])
    with pytest.raises(InputError, match="at least one run"):
        read_runs([])


def test_attacks_on_a_model_from_outside_need_no_config(make_run: Callable[..., Any]) -> None:
    run = make_run("run").attacked(18, ONE_BROKEN)
    run.dir.config.unlink()
    assert read_runs([run.dir.root])[0].config is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": 2}, "format: expected 1 .*, found 2"),
        ({"num_robust": 20}, "num_robust|20 of 20 images"),
        ({"num_images": "many"}, "num_images: expected .*found 'many'"),
        (
            {"robust_accuracy": {"value": 1.7, "low": 0, "high": 1}},
            "robust_accuracy: expected shares.*1.7",
        ),
    ],
)
def test_a_summary_that_cannot_be(make_run: Callable[..., Any], values: dict[str, Any], words: str) -> None:
    run = make_run("run").attacked(18, ONE_BROKEN)
    edit(run.dir.attack("linf").summary, **values)
    with pytest.raises(InputError, match=words):
        read_runs([run.dir.root])


def test_a_summary_without_a_key_and_one_that_is_no_json(make_run: Callable[..., Any]) -> None:
    summary = make_run("run").attacked(18, ONE_BROKEN).dir.attack("linf").summary
    values = json.loads(summary.read_text())
    del values["norm"]
    summary.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"norm: expected a value.*found nothing"):
        read_runs([summary.parents[2]])
    summary.write_text("{")
    with pytest.raises(InputError, match=r"a whole file \(merge it again\), found no JSON"):
        read_runs([summary.parents[2]])


def test_attacks_on_weights_that_were_replaced_since_are_refused(make_run: Callable[..., Any]) -> None:
    run = make_run("run").trained().attacked(18, ONE_BROKEN)
    assert read_runs([run.dir.root])[0].attacks[0].summary.num_robust == 17
    run.dir.weights.write_bytes(b"others")
    with pytest.raises(InputError, match=r"model.safetensors: expected the weights that attack linf was made on"):
        read_runs([run.dir.root])
    run.dir.weights.unlink()  # gone is not other
    assert read_runs([run.dir.root])[0].attacks[0].summary.num_robust == 17


def test_a_flipped_digit_of_a_summary_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run("run").attacked(18, ONE_BROKEN)
    summary = run.dir.attack("linf").summary
    sealed.write_json(summary, json.loads(summary.read_text()))
    assert read_runs([run.dir.root])[0].attacks[0].summary.seconds == 10
    summary.write_text(summary.read_text().replace('"seconds": 10.0', '"seconds": 11.0'))
    with pytest.raises(InputError, match=r"summary.json: expected a whole file \(merge it again\)"):
        read_runs([run.dir.root])


def test_records_that_are_no_records(make_run: Callable[..., Any]) -> None:
    run = make_run("run").attacked(18, ONE_BROKEN)
    records = run.dir.attack("linf").records
    polars.DataFrame({"image": [1]}).write_parquet(records)
    with pytest.raises(InputError, match="the column broken_by"):
        _ = read_runs([run.dir.root])[0].attacks[0].records
    records.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"records.parquet: expected a whole file"):
        _ = read_runs([run.dir.root])[0].attacks[0].records
