"""The studies that the documentation tells of: their files, their numbers and the words about them are one."""

import functools
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kapdist.config import AttackConfig
from kapdist.config.file import read_yaml
from kapdist.forecast.gather import describes_study
from kapdist.records.attack_plan import read_plan
from kapdist.records.record import read_record
from kapdist.records.sealed import json_bytes, write_json
from kapdist.records.study import StudyResults
from kapdist.records.summary import read_summary
from kapdist.run.paths import AttackDir
from kapdist.study.claims import decide
from kapdist.study.design import Design, make_design
from kapdist.study.export import csv_text, difference, markdown
from kapdist.study.pack import pack_study, without_folders
from kapdist.study.page import write_study_report
from kapdist.study.results import otherwise, read_results

ROOT = Path(__file__).parents[2]
NAMES = ["fashion_mnist", "fashion_mnist_inputs", "fashion_mnist_layers"]
PUBLISHED = sorted(ROOT.glob("docs/study/*/results.json"))
PACKED = sorted(ROOT.glob("docs/study/*/records.zip"))


def read(path: Path) -> StudyResults:
    return read_record(StudyResults, path, "no other")


@functools.cache
def design_of(name: str) -> Design:
    """The study of a name among configs/, as it is run from the checkout."""
    files = [path for path in sorted(ROOT.glob("configs/*/*.yaml")) if describes_study(path)]
    (design,) = (design for design in map(make_design, files) if design.config.name == name)
    return design


def test_there_are_three_and_two_have_their_records() -> None:
    """Those of the first stayed on a machine that is gone."""
    assert [path.parent.name for path in PUBLISHED] == NAMES
    assert [path.parent.name for path in PACKED] == NAMES[1:]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_page_has_the_verdicts_and_the_table_as_the_study_wrote_them(path: Path) -> None:
    found = read(path)
    assert markdown(found) in path.parent.with_suffix(".md").read_text()
    assert csv_text(found.rows) == (path.parent / "table.csv").read_text()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_what_was_published_is_of_the_file_that_is_in_configs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found, design = read(path), design_of(path.parent.name)
    assert found.name == path.parent.name
    assert found.fingerprint == design.fingerprint
    assert [one.claim for one in found.decisions] == [claim.text for claim in design.config.claims]
    missing = {name.split("/")[0].rsplit("_seed", 1)[0] for name in found.missing}
    assert {row.setting for row in found.rows} | missing == {setting.name for setting in design.settings}


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.parent.name)
def test_every_number_can_be_counted_anew_from_the_records(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zipfile.ZipFile(path).extractall("studies")
    page = write_study_report(design_of(path.parent.name))
    assert page.with_name("results.json").read_bytes() == path.with_name("results.json").read_bytes()
    assert page.with_name("costs.json").read_bytes() == path.with_name("costs.json").read_bytes()
    assert page.read_text() == path.with_name("report.html").read_text()


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    zipfile.ZipFile(PACKED[0]).extractall("studies")
    return tmp_path / "studies" / NAMES[1] / "runs"


def test_places_in_another_file_are_other_images(unpacked: Path) -> None:
    """A seed, then an arm, attacked on another beton: its first 256 images have the ids of ours."""
    design = design_of(NAMES[1])
    for seeds, why in ((5, 6), "has no result for seed"), ((5, 6, 7, 8, 9), "not attacked on the same images"):
        for seed in seeds[-4:]:
            plan = unpacked / f"kap_seed{seed}" / "attacks" / "standard" / "plan.json"
            told = json.loads(plan.read_text())
            plan.write_text(json.dumps(told | {"data": told["data"] | {"fingerprint": "another"}}))
        decided = {one.claim: one for one in decide(read_results(design))}
        found = decided["kap over plain, robust accuracy at 8/255"]
        assert (found.verdict, found.p) == ("not decided", None)
        assert why in found.why


def test_an_attack_at_another_eps_is_not_the_one_that_is_asked_for(unpacked: Path) -> None:
    """What fell at 8/255 alone would count as withstanding 16/255 else, and as falling at no less."""
    config = "attacks={standard: {eps: 16/255, num_images: 256, chunk_size: 128}}"
    file = ROOT / "configs" / "fashion_mnist" / "study_inputs.yaml"
    design = make_design(file, [config, "claims=[]"])
    found = read_results(design)
    assert not found.rows
    assert "plain_seed5 was attacked (standard) at Linf 8/255: left out" in found.notes


def test_a_run_that_somebody_trained_otherwise_under_its_name_is_left_out(unpacked: Path) -> None:
    """As one that diverged and was trained by hand at another rate: it is done, and no command asks again."""
    config = unpacked / "kap_seed7" / "config.yaml"
    lr = read_yaml(config)["optim"]["lr"]
    config.write_text(config.read_text().replace(f"lr: {lr}", "lr: 0.0123"))
    found = read_results(design_of(NAMES[1]))
    (note,) = found.notes
    assert note.startswith(
        "kap_seed7 was trained with another config (expected optim.lr = 0.0123 as this run began"
    )
    assert note.endswith(f"found {lr}): left out")
    decided = {one.claim: one.why for one in decide(found)}
    assert decided["kap over plain, robust accuracy at 8/255"] == "kap under standard has no result for seed 7"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data", "on other images than plain_seed5, though data.train is the same"),
        ("batch_size", "in other batches than plain_seed5, though train.batch_size is the same"),
    ],
)
def test_a_beton_that_was_written_anew_between_two_trainings_is_told(unpacked: Path, key: str, said: str) -> None:
    """The path says nothing of it, nor would the page else: half of a study on other images than the rest."""
    design = design_of(NAMES[1])
    assert read_results(design).notes == ()
    for run in unpacked.iterdir():
        told = json.loads((run / "plan.json").read_text())
        late = int(run.name.rpartition("_seed")[2]) > 6
        (run / "plan.json").write_text(json.dumps(told | {key: f"written {'late' if late else 'early'}"}))
    shutil.rmtree(unpacked / "plain_seed9")  # what is not trained yet tells nothing
    (note,) = read_results(design).notes
    assert note.startswith("plain_seed7, ")
    assert note.endswith(f" more trained {said}")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("noise: fresh", "with noise off"),
        ("version: custom, attacks: [apgd-ce]", "by version standard"),
        ("noise: fresh, eot: 4", "with noise off"),
    ],
)
def test_an_attack_of_another_kind_is_not_the_one_that_is_asked_for(unpacked: Path, keys: str, said: str) -> None:
    config = f"attacks={{standard: {{eps: 8/255, num_images: 256, chunk_size: 128, {keys}}}}}"
    file = ROOT / "configs" / "fashion_mnist" / "study_inputs.yaml"
    found = read_results(make_design(file, [config, "claims=[]"]))
    assert not found.rows
    assert f"plain_seed5 was attacked (standard) {said}: left out" in found.notes


@pytest.mark.parametrize(
    ("done", "asked", "said"),
    [
        ({"version": "custom"}, {"version": "custom", "attacks": ("apgd-ce", "square")}, ""),
        ({"version": "custom"}, {"version": "custom", "attacks": ("apgd-ce",)}, "by apgd-ce, square"),
        ({"noise": "fresh", "eot": 4}, {"noise": "fresh", "eot": 4}, ""),
        ({"noise": "fresh", "eot": 2}, {"noise": "fresh", "eot": 4}, "on a mean of 2 draws"),
        ({"noise": "fresh", "eot": 1}, {"noise": "fresh"}, ""),
    ],
)
def test_an_attack_is_known_by_its_list_and_its_draws(
    unpacked: Path, done: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    summary = read_summary(unpacked / "plain_seed5" / "attacks" / "standard" / "summary.json")
    stages = [
        summary.attacks[0].model_copy(update={"name": f"{name}@{eps:.6g}", "eps": eps})
        for eps in (2 / 255, 8 / 255)
        for name in ("screen", "apgd-ce", "square")
    ]
    sweep = [summary.sweep[0].model_copy(update={"eps": eps}) for eps in (2 / 255, 8 / 255)]
    found = summary.model_copy(update={"attacks": stages, "sweep": sweep} | done)
    config = AttackConfig.model_validate({"name": "standard", "eps": (2 / 255, 8 / 255)} | asked)
    assert otherwise(config, found) == said


def test_what_stronger_attacks_speak_against_decides_nothing_and_is_packed(unpacked: Path, tmp_path: Path) -> None:
    """Though nobody asked the study for it: a report that somebody made of one attack by hand."""
    design, attack = design_of(NAMES[1]), unpacked / "kap_seed7" / "attacks" / "standard"
    plan = read_plan(AttackDir(attack)).fingerprint
    acted = {"attack": "PGD", "plan_fingerprint": plan, "num_images": 64, "num_robust": 9, "num_left": 2}
    remedy = {"attack": "more iterations", "causes": ["weak"], "num_attacked": 9, "num_broken": 7}
    with zipfile.ZipFile(PACKED[1]) as others:
        report = others.read(f"{NAMES[2]}/runs/noise_0.4_seed10/attacks/standard/sanity.json")
    write_json(attack / "sanity.json", json.loads(report) | {"acted": acted | {"remedies": [remedy]}})
    found = read_results(design)
    decided = {one.claim: one for one in decide(found)}
    robust = decided["kap over plain, robust accuracy at 8/255"]
    assert (robust.verdict, robust.p) == ("not decided", None)
    assert robust.why == "the robust accuracy of kap_seed7 is not to be believed"
    said = "PGD said 14.1% robust of 64 images; with more iterations 3.1% are left"
    assert found.notes == (f"the robust accuracy of kap_seed7 under standard is not to be believed: {said}",)
    pack_study(design, tmp_path / "records.zip")
    page = (unpacked.parent / "report" / "index.html").read_text()
    assert f"{found.notes[0]}." in page
    shutil.rmtree(unpacked.parent)
    zipfile.ZipFile(tmp_path / "records.zip").extractall("studies")
    assert write_study_report(design).read_text() == page


def test_no_folder_of_images_is_packed(tmp_path: Path) -> None:
    """Of plans whose subject has the images, of the photographs of frost, of a record that names its beton."""
    home = "/home/me/data"
    told: dict[str, dict[str, Any]] = {
        "attack": {"data": {"path": f"{home}/test.beton", "fingerprint": "f"}, "published": None},
        "certificate": {"subject": {"data": {"path": f"{home}/test.beton"}}, "sigmas": [0.25]},
        "corruptions": {
            "subject": {"data": {"path": f"{home}/test.beton"}},
            "published": {"folder": f"{home}/CIFAR-10-C"},
            "frost_folder": f"{home}/frost",
        },
        "topography": {"data": f"{home}/test.beton", "data_fingerprint": "f"},
    }
    for name, value in told.items():
        write_json(tmp_path / f"{name}.json", value)
        packed = without_folders(tmp_path / f"{name}.json")
        assert home not in packed.decode()
        assert packed == json_bytes(json.loads(json.dumps(value).replace(f"{home}/", "")))


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_mnist_layers"])
def test_the_readme_says_of_kap_what_the_studies_say(name: str) -> None:
    readme = (ROOT / "README.md").read_text()
    decided = {one.claim: one for one in read(ROOT / f"docs/study/{name}/results.json").decisions}
    claim = "kap-noise over noise, robust accuracy at 8/255, at equal clean accuracy"
    assert f"{difference(decided[claim])}: **{decided[claim].verdict}**" in " ".join(readme.split())
