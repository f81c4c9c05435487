"""Robust accuracy against eps on the page and in its files, against counts over the records."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from attack_world import make_plan, one_thread, short, tiny, world  # noqa: F401
from PIL import Image
from records.test_worst import attacked
from report.test_report_browser import browse, chromium, probe_of  # noqa: F401

from kapdist.report import write_report
from kapdist.report.curves import panels, smallest_points
from kapdist.report.reading import read_runs
from kapdist.statistics.intervals import wilson

World = Any
SWEEP = [0.01, 0.02, 0.04]


def test_the_curves_are_those_of_the_records(
    world: World,  # noqa: F811
    short: None,  # noqa: F811
    chromium: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    shared = {"attacks": ("fmn",), "fmn_steps": 15, "chunk_size": 22}
    attack = attacked(world, "linf", eps=SWEEP, **shared)
    attacked(world, "l2", norm="L2", eps=0.2, **shared)
    attacked(world, "other", norm="L2", eps=[0.1, 0.2], attacks=("apgd-ce",), chunk_size=22)
    page = write_report([world.run], tmp_path / "report")
    table = pl.read_parquet(attack.records)
    right = table.filter(pl.col("label") == pl.col("clean_prediction")).height
    rows = pl.read_csv(page.parent / "curves.csv").filter(pl.col("norm") == "Linf")
    assert rows["eps"].to_list() == [0, *SWEEP]
    counts = [right - table.filter(pl.col("broken_eps") <= eps).height for eps in (0, *SWEEP)]
    assert rows["num_robust"].to_list() == counts
    assert counts[0] == right > counts[1] > counts[2] > counts[3] > 0
    for count, *limits in rows.select("num_robust", "robust", "robust_low", "robust_high").rows():
        share = wilson(count, 22)
        assert limits == [share.value, share.low, share.high]

    (run,) = read_runs([world.run])
    drawn = [(panel.setting.norm, panel.of_smallest, len(panel.curves)) for panel in panels([run])]
    assert drawn == [("Linf", False, 1), ("Linf", True, 1), ("L2", True, 1), ("L2", False, 1)]
    steps = smallest_points(next(it for it in run.attacks if it.name == "linf"))
    assert (steps[0].eps, steps[0].num_robust) == (0, right)
    for point in steps:
        assert point.num_robust == table.filter(pl.col("smallest").fill_null(9) > point.eps).height
    for eps, count in zip(SWEEP, counts[1:], strict=True):
        assert next(point.num_robust for point in reversed(steps) if point.eps <= eps) == count

    text = page.read_text()
    assert "upper bound of its true distance" in text
    assert f"found for 18 of {right} images that are right; median over all images" in text
    names = ["accuracy-by-eps-L2", "accuracy-by-eps-Linf", "smallest-perturbation-L2", "smallest-perturbation-Linf"]
    for name in names:
        with Image.open(page.parent / f"{name}.png") as image:
            assert min(image.size) > 500
    seen = probe_of(chromium, page, tmp_path, 360)
    assert all(seen["pictures"])
    assert seen["scroll"] <= seen["width"] == 360


def test_records_without_the_column_are_read_as_before(world: World, short: None, tmp_path: Path) -> None:  # noqa: F811
    from kapdist.attack.merge import merge
    from kapdist.records.sealed import write_table
    from kapdist.report.export import run as exports

    attack = attacked(world, "old", eps=SWEEP, chunk_size=22)
    before = json.loads(attack.summary.read_text())
    for path in attack.chunks.glob("*.parquet"):
        write_table(pl.read_parquet(path).drop("smallest"), path)
    summary = merge(attack.root)
    assert summary.smallest is None
    assert summary.num_robust == before["num_robust"]
    assert "Robust accuracy against eps, Linf" in write_report([world.run], tmp_path / "report").read_text()
    exports.export([attack.root], tmp_path / "out", ["csv"], standard=lambda *_: None)
    assert pl.read_csv(tmp_path / "out" / "images.csv")["smallest"].null_count() == 22
