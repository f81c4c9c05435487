"""The studies that the documentation tells of: their files, their numbers and the words about them are one."""

import zipfile
from pathlib import Path

import pytest

from kapdist.forecast.gather import describes_study
from kapdist.records.record import read_record
from kapdist.records.study import StudyResults
from kapdist.study.design import Design, make_design
from kapdist.study.export import csv_text, difference, markdown
from kapdist.study.page import write_study_report

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


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_mnist_layers"])
def test_the_readme_says_of_kap_what_the_studies_say(name: str) -> None:
    readme = (ROOT / "README.md").read_text()
    decided = {one.claim: one for one in read(ROOT / f"docs/study/{name}/results.json").decisions}
    claim = "kap-noise over noise, robust accuracy at 8/255, at equal clean accuracy"
    assert f"{difference(decided[claim])}: **{decided[claim].verdict}**" in " ".join(readme.split())
