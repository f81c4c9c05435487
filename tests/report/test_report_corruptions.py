"""The page's section on corruptions, from files as the attack side writes them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kapdist.errors import InputError
from kapdist.report import write_report

REFERENCE = {"run": "plain", "weights_sha256": "4" * 64, "plan_fingerprint": "1" * 64}


def share(value: float) -> dict[str, float]:
    low, high = max(value - 0.05, 0), value + 0.05
    return {"value": value, "low": low, "high": high, "bootstrap_low": low, "bootstrap_high": high}


def kind(name: str, shares: list[float], error: float | None = None) -> dict[str, Any]:
    cells = [
        {
            "severity": place,
            "level": None,
            "num_correct": round(20 * value),
            "accuracy": share(value),
            "seconds": 1.0,
        }
        for place, value in enumerate(shares, start=1)
    ]
    mean = share(sum(shares) / len(shares))
    return {"kind": name, "severities": cells, "mean_accuracy": mean, "corruption_error": error}


def summary(**fields: Any) -> dict[str, Any]:
    noise = kind("random_uniform", [0.8])
    noise["severities"][0]["level"] = 0.03125
    values = {
        "format": 1,
        "name": "c",
        "run": "plain",
        "plan_fingerprint": "1" * 64,
        "data_fingerprint": "2" * 64,
        "images_sha256": "3" * 64,
        "weights_sha256": "4" * 64,
        "num_images": 20,
        "noise": "off",
        "eot": 1,
        "seed": 0,
        "side": 32,
        "frost": "drawn",
        "num_clean_correct": 18,
        "norm": "Linf",
        "clean_accuracy": share(0.9),
        "kinds": [kind("jpeg_compression", [0.85, 0.6]), kind("fog", [0.45, 0.1])],
        "random_noise": [noise],
        "mean_corruption_accuracy": share(0.5),
        "mean_corruption_error": None,
        "reference": None,
        "seconds": 6.0,
        "device": "cpu",
        "packages": {},
        "notes": ["frost is drawn"],
    }
    return values | fields


def written(make_run: Any, name: str, found: dict[str, Any]) -> Path:
    run = make_run(name).trained(0.9)
    path = run.dir.corrupted("c").summary
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))
    return run.dir.root


def text_of(page: Path) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split()))


def test_the_page_has_a_row_for_each_kind_and_the_means(make_run, tmp_path: Path) -> None:
    related = [kind("jpeg_compression", [0.85, 0.6], 0.8), kind("fog", [0.45, 0.1], None)]
    other = summary(kinds=related, reference=REFERENCE, mean_corruption_error=0.8125)
    runs = [written(make_run, "plain", summary()), written(make_run, "kap", other)]
    page = write_report(runs, tmp_path / "out")
    text = text_of(page)
    assert "plain, c: 20 images, noise off" in text
    assert (
        "Kind Severity 1 Severity 2 Mean [95% interval] JPEG compression 85.0 60.0 72.5 [67.5, 77.5] fog 45.0"
        in text
    )
    assert "Clean: 90.0% [85.0, 95.0]; mean over all kinds and severities: 50.0% [45.0, 55.0]" in text
    assert "Random Linf noise, eps 0.03125: 80.0%." in text
    assert "mCE relative to plain: 0.812" in text
    assert "77.5] 0.800 fog" in text
    assert "Note: frost is drawn." in text
    assert page.read_text().count("--share: 0.45") == 2


def test_numbers_of_other_weights_say_so(make_run, tmp_path: Path) -> None:
    run = written(make_run, "plain", summary(weights_sha256="0" * 64))
    assert "these numbers are of other weights" in text_of(write_report([run], tmp_path / "out"))


def test_without_corruptions_there_is_no_section(page: Path) -> None:
    assert "common corruptions" not in page.read_text()


def test_a_summary_that_is_none_is_refused(make_run, tmp_path: Path) -> None:
    run = written(make_run, "plain", summary(num_images=0))
    with pytest.raises(InputError, match="num_images"):
        write_report([run], tmp_path / "out")
