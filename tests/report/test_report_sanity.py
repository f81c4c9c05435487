"""The section of the page that says whether numbers can be believed, from files as the attack side writes them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kapdist.errors import InputError
from kapdist.report import write_report
from kapdist.sanity.verdict import CHECKS, causes, judged, overall

GRID = [[0.1 * row + 0.02 * column for column in range(5)] for row in range(5)]


def sanity(noise: str = "off", **numbers: float) -> dict[str, Any]:
    """A report in which the given numbers are what they are and all others were not asked."""
    rows = judged({check.name: numbers.get(check.name.replace(" ", "_")) for check in CHECKS})
    curve = {"x": [1, 2, 4], "y": [0.9, 0.5, 0.5]}
    curves: dict[str, Any] = {"iterations": curve, "neighbours": {"x": [0, 0.5, 1], "y": [1, None, 0.7]}}
    curves["eps"] = {"x": [0, 0.01, 0.02], "y": [1, 0.5, 0.2], "unbounded": 0.0}
    curves["landscape"] = {"steps": [-2, -1, 0, 1, 2], "loss": GRID}
    if noise == "fresh":
        curves |= {"draws": curve, "agreement": {"x": [1, 2, 5], "y": [0.4, 0.6, 0.8]}}
    return {
        "format": 1,
        "name": "linf",
        "norm": "Linf",
        "eps": 8 / 255,
        "noise": noise,
        "verdict": overall(rows),
        "causes": causes(rows),
        "suspected": causes(rows, "warn"),
        "num_images": 20,
        "num_clean_correct": 18,
        "draws": 5 if noise == "fresh" else 1,
        "iterations": 2,
        "restarts": 2,
        "checks": rows,
        "attacks": {"pgd": 0.5, "square": 0.7},
        "curves": curves,
        "forwards": 10,
        "backwards": 5,
        "notes": ["a note of this report"],
        "weights_sha256": None,
    }


def written(make_run: Any, name: str, report: dict[str, Any]) -> Path:
    run = make_run(name).trained(0.9)
    path = run.dir.attack("linf").sanity
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report))
    return run.dir.root


def test_the_page_has_the_verdicts_the_causes_and_the_plots(make_run, tmp_path: Path) -> None:
    masked = written(make_run, "masked", sanity(saturated=0.9, margin_loss=0.5, zero=0.05, false=0.01))
    noisy = written(make_run, "noisy", sanity("fresh", flips=0.01))
    page = write_report([masked, noisy], tmp_path / "out").read_text()
    text = html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))
    assert "Can these numbers be believed?" in text
    assert "masked, linf fail saturated softmax, non-differentiable step 1 1 2" in text
    assert "noisy, linf pass none 1 0 0" in text
    assert "Pixels that cross-entropy rounds away: 0.9 (limits > 0.05, > 0.2)" in text
    assert "a note of this report" in text
    assert "Attacks without a summary" not in text  # the directory is the report's own
    assert len(re.findall(r'<img src="data:image/svg', page)) == 2 + 5 + 7  # training, masked, noisy
    assert (tmp_path / "out" / "sanity-landscape-masked-linf.png").exists()


def test_without_reports_there_is_no_section(page: Path) -> None:
    assert "Can these numbers be believed?" not in page.read_text()


def test_a_report_of_other_weights_says_so(make_run, tmp_path: Path) -> None:
    run = written(make_run, "old", sanity() | {"weights_sha256": "0" * 64})
    assert "this report is of other weights" in write_report([run], tmp_path / "out").read_text()


def test_a_damaged_report_is_named(make_run, tmp_path: Path) -> None:
    run = written(make_run, "damaged", sanity() | {"verdict": "perhaps"})
    with pytest.raises(InputError, match=r"sanity\.json: verdict"):
        write_report([run], tmp_path / "out")
