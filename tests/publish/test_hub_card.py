"""The model card: its front matter as the hub's own library reads it, and what it says in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from attack_world import make_plan  # noqa: F401
from publish.conftest import CLASSES, SMALL, by_chance
from report.conftest import FakeRun, standard
from report.test_report_sanity import ACTED, sanity

from kapdist.errors import InputError
from kapdist.models.weights import save_weights
from kapdist.publish.card import Card
from kapdist.publish.folder import write_folder
from kapdist.publish.form import form_of
from kapdist.publish.run import publish
from kapdist.records.attack_plan import AttackPlan, write_plan
from kapdist.run.files import file_sha256, fingerprint, to_json
from kapdist.statistics.intervals import wilson

MakeTrained = Callable[..., FakeRun]
NOTHING = "**No attack was made on these weights: nothing is claimed about their robustness.**"


@pytest.fixture
def trained(tmp_path: Path) -> FakeRun:
    """A run with activation noise and real weights; its last evaluation has 9,000 of 10,000 images right."""
    run = FakeRun(tmp_path / "runs" / "noisy", 3, "sheet", 0.3, {"model": SMALL}).trained(0.9)
    save_weights(by_chance(run.dir), run.dir.weights)
    run.dir.plan.write_text(to_json({"classes": CLASSES}))
    return run


def card_of(run: FakeRun, out: Path, card: Card | None = None) -> tuple[dict[str, Any], str]:
    write_folder(form_of(run.dir.root), out, card or Card(), {})
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), " ".join(text.split())


def test_attacks_of_other_strength_are_told_apart(trained: FakeRun, tmp_path: Path) -> None:
    for name, screen, eot in (("a", 0, 1), ("b", 10, 1), ("c", 0, 20)):
        trained.attacked(18, standard(8, 1, 0, 1), name=name)
        path = trained.dir.attack(name).summary
        path.write_text(json.dumps(json.loads(path.read_text()) | {"screen": screen, "eot": eot}))
    _, text = card_of(trained, tmp_path / "hub", Card())
    for words in ("single draws, no screen", "single draws, 10-step screen first", "mean of 20 draws, no screen"):
        assert f"AutoAttack standard, Linf, eps 0.03137 (8/255), noise off, {words} | test.beton" in text


def test_every_number_is_counted_and_has_its_protocol(trained: FakeRun, tmp_path: Path) -> None:
    """Of 20 images 18 are right; 8 of them withstand with the noise off, 11 with the noise on."""
    trained.attacked(18, standard(8, 1, 0, 1), name="off")
    trained.attacked(18, standard(7, 0, 0, 0), name="on", noise="fresh")
    front, text = card_of(trained, tmp_path / "hub", Card("cc-by-4.0", "owner/photographs", "owner/noisy"))
    assert (front["license"], front["datasets"]) == ("cc-by-4.0", ["owner/photographs"])
    assert (front["library_name"], front["pipeline_tag"]) == ("kapdist", "image-classification")
    assert {"kernel-average-pooling", "adversarial-robustness"} <= {*front["tags"]}
    values = [
        (entry["dataset"]["name"], metric["value"], metric["args"]["noise"])
        for entry in front["model-index"][0]["results"]
        for metric in entry["metrics"]
    ]
    attacked = "test.beton, 20 images"
    assert values == [
        ("test.beton, 10,000 images", 0.9, "off"),
        *((attacked, share, "off") for share in (18 / 20, 8 / 20)),
        *((attacked, share, "fresh") for share in (18 / 20, 11 / 20)),
    ]
    robust = front["model-index"][0]["results"][1]["metrics"][1]["args"]
    assert (robust["attack"], robust["norm"], robust["eps"]) == ("AutoAttack standard", "Linf", 8 / 255)
    low, high = 100 * wilson(9000, 10000).low, 100 * wilson(9000, 10000).high
    assert f"| test.beton | 10,000 | off | 90.0 [{low:.1f}, {high:.1f}] |" in text
    assert "AutoAttack standard, Linf, eps 0.03137 (8/255), noise off | test.beton | 20 | 90.0" in text
    assert "noise fresh | test.beton | 20 | 90.0" in text
    assert "`from_pretrained(..., noise=True)` alone" in text
    assert "No attack was made" not in text
    assert "Nobody has asked: no sanity report is of these weights." in text
    assert "ant, bee, cat" in text
    assert "`hf download owner/noisy --local-dir FOLDER`" in text


def test_the_hub_s_library_reads_the_same(trained: FakeRun, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="it is not installed (pip install 'kapdist[hub]')")
    front, _ = card_of(trained.attacked(18, standard(8, 1, 0, 1)), tmp_path / "hub", Card("mit"))
    data = hub.ModelCard.load(tmp_path / "hub" / "README.md").data
    assert (data.license, data.library_name, data.tags) == ("mit", "kapdist", front["tags"])
    assert [found.metric_value for found in data.eval_results] == [0.9, 0.9, 0.4]
    assert {found.task_type for found in data.eval_results} == {"image-classification"}


def test_without_an_attack_nothing_is_claimed(trained: FakeRun, tmp_path: Path) -> None:
    front, text = card_of(trained, tmp_path / "hub")
    assert NOTHING in text
    assert "`hf download" not in text
    assert [len(entry["metrics"]) for entry in front["model-index"][0]["results"]] == [1]
    assert not {"license", "datasets"} & {*front}
    assert "Licence: not stated" in text


def test_attacks_on_other_weights_are_left_out_and_named(trained: FakeRun, tmp_path: Path) -> None:
    """The best weights were not attacked, whatever the final ones withstood; an evaluation of theirs counts."""
    trained.attacked(18, standard(1, 0, 0, 0))
    best = by_chance(trained.dir)
    best.fc.bias.data += 1
    save_weights(best, trained.dir.best_weights)
    evaluated(trained, file_sha256(trained.dir.best_weights))
    publish(trained.dir.root, tmp_path / "hub", ["hub"], Card(), weights="best")
    text = " ".join((tmp_path / "hub" / "README.md").read_text().split())
    assert NOTHING in text
    assert "made on other weights of this run or on another network: linf." in text
    assert "| other.beton | 50 | fixed | 84.0" in text
    assert "10,000" not in text


def test_an_attack_that_was_planned_anew_is_left_out_and_named(
    trained: FakeRun,
    make_plan: Callable[..., AttackPlan],  # noqa: F811
    tmp_path: Path,
) -> None:
    trained.attacked(18, standard(1, 0, 0, 0))
    attack = trained.dir.attack("linf")
    attack.plan.unlink()
    write_plan(
        attack, make_plan("L2", 0.5, ("apgd-ce",), images=(0, 1), num_images=2, images_sha256=fingerprint([0, 1]))
    )
    _, text = card_of(trained, tmp_path / "hub")
    assert NOTHING in text
    assert "Left out, as they were planned anew and not merged since: linf." in text


def test_another_network_that_loads_the_same_file_is_another(trained: FakeRun, tmp_path: Path) -> None:
    """Its number is what its factory makes of the weights: a defence around the network, say."""
    trained.attacked(18, standard(8, 1, 0, 1)).attacked(18, standard(1, 0, 0, 0), name="defended", num_images=30)
    plan = trained.dir.attack("defended").plan
    plan.write_text(plan.read_text().replace('"factory": null', '"factory": "defence.py:jpeg"'))
    sha256 = file_sha256(trained.dir.weights)
    evaluated(trained, sha256, "other", {"noise": "off", "model.factory": "defence.py:jpeg"})
    evaluated(trained, sha256, "own", {"noise": "off", "model.factory": None}, 45)
    report = sanity() | {"weights_sha256": sha256}
    trained.dir.attack("defended").sanity.write_text(json.dumps(report))  # of before: the plan beside it tells
    trained.dir.attack("own").root.mkdir()
    trained.dir.attack("own").sanity.write_text(json.dumps(report | {"factory": "defence.py:jpeg"}))
    front, text = card_of(trained, tmp_path / "hub")
    names = [entry["dataset"]["name"] for entry in front["model-index"][0]["results"]]
    assert names == ["test.beton, 10,000 images", "other.beton, 45 images", "test.beton, 20 images"]
    assert "made on other weights of this run or on another network: defended." in text
    assert "Nobody has asked: no sanity report is of these weights." in text


def test_a_protocol_says_what_is_not_as_in_training(trained: FakeRun, tmp_path: Path) -> None:
    data = trained.dir.load_config().data
    sha256, run = file_sha256(trained.dir.weights), {"resolution": data.resolution, "crop_ratio": None}
    assert data.crop == "none"
    trained.attacked(18, standard(8, 1, 0, 1)).attacked(18, standard(1, 0, 0, 0), name="resized", noise="fresh")
    attack, size = trained.dir.attack("resized"), {"resolution": 64, "crop": "random-resized", "crop_ratio": 0.5}
    plan = json.loads(attack.plan.read_text())
    attack.plan.write_text(json.dumps(plan | {"data": plan["data"] | size, "precision": "bf16"}))
    attack.summary.write_text(json.dumps(json.loads(attack.summary.read_text()) | {"eot": 20}))
    evaluated(trained, sha256, "plain", {"noise": "off", "flip": False, "draws": 1}, 50, **run)
    settings = {"noise": "fresh", "flip": True, "draws": 50}
    evaluated(trained, sha256, "views", settings, 60, resolution=64, crop_ratio=0.5, interpolation="bicubic")
    front, text = card_of(trained, tmp_path / "hub")
    assert "| other.beton | 50 | off | 84.0" in text
    words = "64 px, centre crop 0.5, bicubic"
    assert f"| other.beton | 60 | fresh, mean of 50 draws, mean with the mirror image, {words} | 70.0" in text
    assert "noise off | test.beton | 20" in text
    words = "mean of 20 draws, passes in bf16, 64 px, centre crop 0.5, area"
    assert f"noise fresh, {words} | test.beton | 20" in text
    said = [metric["args"] for entry in front["model-index"][0]["results"] for metric in entry["metrics"]]
    shape = {"resolution": 64, "crop": "center", "crop_ratio": 0.5}
    views = {"noise": "fresh", "flip": True, "draws": 50, "interpolation": "bicubic"}
    assert said[:3] == [{"noise": "off"}, {"noise": "off"}, shape | views]
    assert said[-1].items() >= (shape | {"eot": 20, "precision": "bf16", "interpolation": "area"}).items()


def evaluated(
    run: FakeRun,
    sha256: str,
    name: str = "other",
    settings: dict[str, Any] | None = None,
    num_images: int = 50,
    **shape: Any,
) -> None:
    values = {
        "name": name,
        "settings": settings or {"noise": "fixed"},
        "resolution": 32,
        "crop_ratio": None,
        "data": {"path": "other.beton", "fingerprint": "o" * 64, "num_images": num_images},
        "weights": {"file": "best.safetensors", "sha256": sha256},
        "top1": 0.84,
        "top5": 1.0,
        "loss": 0.1,
        "ece": 0.0,
        "num_images": num_images,
        "num_top1": 42,
        "num_top5": 50,
        "loss_sum": 5.0,
        "num_classes": 3,
        "classes": [],
        "bins": [],
    } | shape
    run.dir.evaluations.mkdir(exist_ok=True)
    run.dir.evaluation(name).write_text(json.dumps(values))


def test_a_verdict_and_a_doubt_are_said(trained: FakeRun, tmp_path: Path) -> None:
    trained.attacked(18, standard(0, 0, 0, 0), num_images=40)
    attack = trained.dir.attack("linf")
    acted = ACTED | {"plan_fingerprint": json.loads(attack.summary.read_text())["plan_fingerprint"]}
    report = sanity(saturated=0.9) | {"weights_sha256": file_sha256(trained.dir.weights), "acted": acted}
    attack.sanity.write_text(json.dumps(report))
    front, text = card_of(trained, tmp_path / "hub")
    metrics = [metric["name"] for entry in front["model-index"][0]["results"] for metric in entry["metrics"]]
    assert metrics == ["Accuracy", "Clean accuracy"]  # the hub would show a robust one without the doubt
    assert "- **fail** (Linf, eps 0.03137 (8/255), noise off, 18 images): attacks with gradients are misled" in text
    assert "Named: saturated softmax." in text
    assert "**That number is not to be believed.**" in text
    assert "not to be believed: 12.5 left of 40 examined |" in text
    attack.sanity.write_text(json.dumps(report | {"acted": acted | {"plan_fingerprint": "e" * 64}}))
    _, text = card_of(trained, tmp_path / "again")
    assert "12.5% are left. That was another attack than the one of this name by now." in text
    assert "not to be believed" not in text


def test_what_no_export_wrote_is_not_written_over(trained: FakeRun, tmp_path: Path) -> None:
    """Least of all the run's own weights."""
    weights = trained.dir.weights.read_bytes()
    with pytest.raises(
        InputError, match=r"--out: expected a folder of its own, .* found .*model.safetensors without"
    ):
        publish(trained.dir.root, trained.dir.root, ["hub"], Card())
    assert trained.dir.weights.read_bytes() == weights
    assert not (trained.dir.root / "README.md").exists()


def test_a_card_that_somebody_changed_is_not_written_over(trained: FakeRun, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    publish(trained.dir.root, out, ["hub"], Card())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    publish(trained.dir.root, out, ["hub"], Card())  # the same again is the same
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "README.md").write_text("my own words\n")
    with pytest.raises(InputError, match=r"README.md: expected no card yet, or the one that this export writes"):
        publish(trained.dir.root, out, ["hub"], Card("mit"))
    assert (out / "README.md").read_text() == "my own words\n"
