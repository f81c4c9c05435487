"""The studies that the documentation tells of: their files, their numbers and the words about them are one."""

import json
import zipfile
from pathlib import Path

import pytest

from kapdist.forecast.gather import describes_study
from kapdist.records.record import read_record
from kapdist.records.study import StudyResults
from kapdist.study.claims import decide
from kapdist.study.design import Design, make_design
from kapdist.study.export import csv_text, difference, markdown
from kapdist.study.page import write_study_report
from kapdist.study.results import read_results

ROOT = Path(__file__).parents[2]
NAMES = ["fashion_mnist", "fashion_mnist_inputs", "fashion_mnist_layers"]
PUBLISHED = sorted(ROOT.glob("docs/study/*/results.json"))
PACKED = sorted(ROOT.glob("docs/study/*/records.zip"))


def read(path: Path) -> StudyResults:
    return read_record(StudyResults, path, "no other")


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


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_mnist_layers"])
def test_the_readme_says_of_kap_what_the_studies_say(name: str) -> None:
    readme = (ROOT / "README.md").read_text()
    decided = {one.claim: one for one in read(ROOT / f"docs/study/{name}/results.json").decisions}
    claim = "kap-noise over noise, robust accuracy at 8/255, at equal clean accuracy"
    assert f"{difference(decided[claim])}: **{decided[claim].verdict}**" in " ".join(readme.split())
