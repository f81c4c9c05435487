"""What a forge, an archive and a builder of containers read of the checkout: checked, and not run here."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kapdist.environment import package_version
from tools.release_notes import main as release_notes
from tools.release_notes import sections

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.+)"$', PYPROJECT, flags=re.MULTILINE)[1]
# https://semver.org, without build metadata
SEMANTIC = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?"
IN_IMAGE = "/opt/kapdist/"


def loaded(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def test_one_version_and_a_semantic_one() -> None:
    assert re.fullmatch(SEMANTIC, VERSION)
    assert package_version("kapdist") == VERSION, "tools/setup.sh installs it anew"
    assert loaded("CITATION.cff")["version"] == VERSION


def pins(minor: int) -> list[Requirement]:
    """The tested set as Python 3.`minor` takes it."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    every = [Requirement(line) for line in lines if not line.startswith("#")]
    python = {"python_version": f"3.{minor}"}
    return [pin for pin in every if pin.marker is None or pin.marker.evaluate(python)]


@pytest.mark.parametrize("minor", range(10, 14))
def test_the_tested_set_is_for_the_first_release_of_each_python(minor: int) -> None:
    """Debian 12 has 3.11.2, and keeps it; a package that takes 3.11.5 cannot be installed there."""
    for pin in pins(minor):
        found = importlib.metadata.metadata(pin.name)
        assert pin.specifier.contains(found["Version"]), f"{pin}: tools/setup.sh installs the set"
        pythons = found["Requires-Python"] or ""
        assert SpecifierSet(pythons).contains(f"3.{minor}.0"), f"{pin} takes Python {pythons}"


# Citation File Format 1.2.0, schema.json: the keys that there are, those that must be, and those of what is listed.
CITATION_KEYS = {
    *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords"),
    *("license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact"),
    *("repository-code", "title", "type", "url", "version"),
}
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "affiliation", "orcid", "email", "alias"}
ENTITY = {"name", "address", "city", "country", "email", "website", "alias", "orcid"}


def test_the_citation_is_cff_1_2() -> None:
    found = loaded("CITATION.cff")
    assert set(found) <= CITATION_KEYS
    assert {"authors", "cff-version", "message", "title"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    assert found["type"] in ("software", "dataset")
    assert isinstance(found["date-released"], datetime.date)
    assert f'license = "{found["license"]}"' in PYPROJECT
    for reference in found["references"]:
        assert {"authors", "title", "type"} <= set(reference)
        assert {each["type"] for each in reference["identifiers"]} <= {"doi", "url", "swh", "other"}
        assert f"{reference['url']}" in (ROOT / "README.md").read_text()
    for author in [*found["authors"], *(author for each in found["references"] for author in each["authors"])]:
        assert set(author) <= ENTITY if "name" in author else set(author) <= PERSON


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
FIELDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}  # GitHub's syntax of issue forms


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "title", "body"}
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in FIELDS
        assert field["attributes"]["label"]
        assert field["type"] != "dropdown" or field["attributes"]["options"]


def test_vulnerabilities_go_elsewhere() -> None:
    """A report is of a form; the forge shows its own private page for vulnerabilities beside them."""
    assert loaded(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}
    assert "in private" in (ROOT / "SECURITY.md").read_text()


def test_the_forge_runs_make_test() -> None:
    """Actions are pinned by commit; packages come from tools/setup.sh but for what is needed to get at it."""
    workflow = loaded(".github/workflows/ci.yml")
    assert {"push", "pull_request"} == set(workflow[True])  # YAML 1.1 takes `on` for a boolean
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    steps, commands = job["steps"], [step["run"] for step in job["steps"] if "run" in step]
    for used in [step["uses"] for step in steps if "uses" in step]:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used)
    assert commands[-1] == "make test"
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    installed = {word for line in commands for word in line.partition("--no-install-recommends")[2].split()}
    assert installed == {"ca-certificates", "git", "make"}
    assert job["timeout-minutes"] > 0


def instructions(name: str) -> list[tuple[str, str]]:
    """Return (instruction, words) of a Dockerfile."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def parts(name: str) -> dict[str, str]:
    """Return {section: text} of an Apptainer definition; its head is the section ""."""
    pieces = re.split(r"^%(\w+)\n", (ROOT / name).read_text(), flags=re.MULTILINE)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


DOCKER = instructions("containers/Dockerfile")
APPTAINER = parts("containers/kapdist.def")
RUN = [words for name, words in DOCKER if name == "RUN"]
SCRIPTS = [*RUN, *(APPTAINER[name] for name in ("post", "runscript", "test"))]
STEPS_OF_SETUP = ("apt-get", "pip ", "venv ", "python3")


def test_the_dockerfile_is_one() -> None:
    assert DOCKER[0][0] == "FROM"
    assert {name for name, _ in DOCKER} <= {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "CMD"}
    assert dict(DOCKER)["COPY"] == f". {IN_IMAGE.rstrip('/')}"
    ignored = (ROOT / "containers" / "Dockerfile.dockerignore").read_text().split()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name.partition("/")[0] for name in tracked} & set(ignored)
    command = yaml.safe_load(dict(DOCKER)["CMD"])
    assert command == [f"{IN_IMAGE}tools/quickstart.sh", dict(DOCKER)["WORKDIR"]]


def test_the_apptainer_definition_is_one() -> None:
    head = dict(line.split(": ") for line in APPTAINER[""].split("\n") if line)
    assert head == {"Bootstrap": "docker", "From": dict(DOCKER)["FROM"]}
    assert set(APPTAINER) - {""} == {"help", "files", "post", "environment", "runscript", "test"}
    copied = [line.split() for line in APPTAINER["files"].splitlines() if line.strip()]
    for here, there in copied:
        assert (ROOT / here).exists()
        assert there == IN_IMAGE + here
    # All that setup.sh installs from, and what is run from the image.
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "kapdist", "launch", "configs", "tools"}
    assert needed <= {here for here, _ in copied}


def test_both_images_are_of_a_tagged_debian() -> None:
    assert re.fullmatch(r"debian:\d+-slim", dict(DOCKER)["FROM"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_step_of_a_container_is_setup_s_or_the_quickstart_s(script: str) -> None:
    """It parses, what it runs of the checkout is there and may be run, and no step of setup.sh is said again."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not [step for step in STEPS_OF_SETUP if step in script]
    for word in shlex.split(script):
        if word.startswith(IN_IMAGE) and ".venv" not in word:
            path = ROOT / word.removeprefix(IN_IMAGE)
            assert os.access(path, os.X_OK), path
    assert "tools/setup.sh" in SCRIPTS[0]
    assert "tools/setup.sh" in APPTAINER["post"]


CHANGES = """# Changelog

Some words.

## Unreleased

### Added
- A new thing.

## [1.1.0] - 2026-11-01

- An older thing,
  in two lines.

## 1.0.0 (2026-01-01)
"""


def test_release_notes_are_a_section_of_the_changelog(tmp_path: Path, monkeypatch, capsys) -> None:
    assert sections(CHANGES) == {
        "Unreleased": "### Added\n- A new thing.",
        "1.1.0": "- An older thing,\n  in two lines.",
        "1.0.0": "",
    }
    path = tmp_path / "CHANGELOG.md"
    path.write_text(CHANGES)
    monkeypatch.setattr("sys.argv", ["release_notes.py", "1.1.0", "--changelog", str(path)])
    release_notes()
    assert capsys.readouterr().out == "- An older thing,\n  in two lines.\n"
    monkeypatch.setattr("sys.argv", ["release_notes.py", "1.2.0", "--changelog", str(path)])
    with pytest.raises(SystemExit, match="2"):
        release_notes()
    assert "expected a section 1.2.0, found Unreleased, 1.1.0, 1.0.0" in capsys.readouterr().err
    assert next(iter(sections((ROOT / "CHANGELOG.md").read_text()))) in ("Unreleased", VERSION)
