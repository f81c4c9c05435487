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
from kapdist.report.comparison import comparison
from kapdist.run.paths import RunDir
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


ACTED = {
    "attack": "The attack (AutoAttack standard)",
    "plan_fingerprint": "of the attack",
    "num_images": 40,
    "num_robust": 18,
    "num_left": 5,
    "remedies": [
        {"attack": "averaged gradients", "causes": ["randomness"], "num_attacked": 18, "num_broken": 13},
        {
            "attack": "transfer",
            "causes": ["masked gradient"],
            "num_attacked": 5,
            "num_broken": 0,
            "skipped": "no surrogate is named",
        },
    ],
}
SAID = "The attack (AutoAttack standard) said 45.0% robust of 40 images; with averaged gradients 12.5% are left."


def examined_after(make_run: Any, acted: dict[str, Any]) -> Path:
    """A run whose attack, 18 of 40 images robust, was examined and something was done about a cause."""
    run = make_run("doubted").trained(0.9).attacked(36, {"apgd-ce": 18}, num_images=40)
    attack = run.dir.attack("linf")
    fingerprint = json.loads(attack.summary.read_text())["plan_fingerprint"]
    if acted["plan_fingerprint"] is not None:
        acted = acted | {"plan_fingerprint": fingerprint}
    attack.sanity.write_text(json.dumps(sanity(flips=0.1) | {"acted": acted}))
    return run.dir.root


def words(page: Path) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split()))


def test_a_number_that_stronger_attacks_lower_is_marked_with_the_lower_one_beside_it(make_run, tmp_path) -> None:
    page = write_report([examined_after(make_run, ACTED)], tmp_path / "out")
    text = words(page)
    assert re.search(r"45\.0 \[[\d., ]+\] not to be believed: 12\.5 left of 40 examined", text)
    assert f"doubted: the robust accuracy is not to be believed. {SAID}" in text
    assert f"{SAID} That number is not to be believed." in text
    assert "averaged gradients randomness 18 13 12.5 –" in text
    assert "transfer masked gradient 5 – 12.5 no surrogate is named" in text
    assert ", not to be believed: 12.5 left of 40 examined" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/table.csv").read_text().endswith(",not to be believed: 12.5 left of 40 examined\n")
    assert (tmp_path / "out" / "sanity-remedies-doubted-linf.png").exists()


def test_what_was_tried_on_an_earlier_attack_is_said_to_be(make_run, tmp_path) -> None:
    root = examined_after(make_run, ACTED)
    path = RunDir(root).attack("linf").sanity
    report = json.loads(path.read_text())
    report["acted"]["plan_fingerprint"] = "e" * 64
    path.write_text(json.dumps(report))
    text = words(write_report([root], tmp_path / "out"))
    assert (
        f"{SAID} That was another attack than the one of this name by now, of whose number it says nothing." in text
    )
    assert "not to be believed" not in text


def test_a_number_that_is_not_to_be_believed_decides_nothing(make_run) -> None:
    """Beside it another run, of fewer images robust, and the same with KAP."""
    doubted = examined_after(make_run, ACTED)
    for name, pool_size in (("other", 1), ("kap", 3)):
        other = make_run(name, pool_size).attacked(36, {"apgd-ce": 36}, num_images=40).dir.root
        found = comparison([doubted, other])
        texts = [claim.text for block in found.blocks for claim in found.claims(block)]
        (text,) = (text for text in texts if "Image by image" in text)
        assert text.endswith("nothing is decided, as the robust accuracy of doubted is not to be believed.")


@pytest.mark.parametrize(
    ("change", "believed"),
    [
        ({"num_left": 18, "remedies": []}, True),
        ({"num_left": 17, "forgiven": 1}, True),
        ({"num_left": 17}, False),
        ({"num_left": 18, "single_draw": 0.9, "single_draw_left": 0.85}, True),
        ({"num_left": 18, "single_draw": 0.9, "single_draw_left": 0.5}, False),
    ],
)
def test_what_is_marked(make_run, change: dict[str, Any], believed: bool) -> None:
    text = comparison([examined_after(make_run, ACTED | change)]).markdown()
    assert ("not to be believed" not in text) == believed


def test_a_report_from_before_the_attack_marks_nothing_and_says_what_to_do(make_run) -> None:
    text = comparison([examined_after(make_run, ACTED | {"plan_fingerprint": None})]).markdown()
    assert "left of 40 examined" not in text
    assert "before this attack was merged; kapdist attack sanity compares them" in text


def test_without_reports_there_is_no_section(page: Path) -> None:
    assert "Can these numbers be believed?" not in page.read_text()


def test_a_report_of_other_weights_says_so(make_run, tmp_path: Path) -> None:
    run = written(make_run, "old", sanity() | {"weights_sha256": "0" * 64})
    assert "this report is of other weights" in write_report([run], tmp_path / "out").read_text()


def test_a_damaged_report_is_named(make_run, tmp_path: Path) -> None:
    run = written(make_run, "damaged", sanity() | {"verdict": "perhaps"})
    with pytest.raises(InputError, match=r"sanity\.json: verdict"):
        write_report([run], tmp_path / "out")
