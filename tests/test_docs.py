"""The pages that tell about the code: files, names, tests and headings that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A path by its folder or its ending, `:name` a name in it. What is written with <n> or * lies in a run directory.
TOPS = ("kapdist", "launch", "tools", "tests", "configs", "examples", "docs")
NAMED = re.compile(
    rf"(?P<path>(?:(?:{'|'.join(TOPS)})/[\w./-]*|[\w./-]+\.(?:py|sh|md|sbatch|j2)))(?::(?P<name>[\w.]+))?"
)


def in_backticks(text: str) -> list[str]:
    """Return what stands in single backticks, a command cut into its words."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [word for quoted in re.findall(r"`([^`]+)`", text) for word in quoted.split()]


def is_defined(name: str, text: str) -> bool:
    """Say whether each part of a dotted name is defined in a file: a function, a class, a constant, a field."""
    return all(
        re.search(rf"^\s*(?:(?:def|class) {part}\b|{part} ?[:=])", text, flags=re.MULTILINE)
        for part in name.split(".")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_of_a_page_exist(page: Path) -> None:
    absent = []
    for word in in_backticks(page.read_text()):
        found = NAMED.fullmatch(word)
        if found is None:
            continue
        path = ROOT / found["path"]
        if not path.exists() or (found["name"] and not is_defined(found["name"], path.read_text())):
            absent.append(word)
    assert absent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_of_a_page_exist(page: Path) -> None:
    """Each in a file of tests that is named before it, in the same paragraph."""
    absent = []
    for paragraph in page.read_text().split("\n\n"):
        text = ""
        for word in in_backticks(paragraph):
            if word.startswith("tests/") and (ROOT / word).is_file():
                text = (ROOT / word).read_text()
            elif word.startswith("test_") and not is_defined(word, text):
                absent.append(word)
    assert absent == []


def written_by_the_build(target: Path) -> bool:
    """Say whether a page of the site is made from the code or from a notebook."""
    return target.resolve().parent == ROOT / "docs" / "reference" or target.with_suffix(".ipynb").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        if written_by_the_build(target):
            continue  # tests/pages/test_site.py builds it and follows the link
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}, link


def test_every_contract_names_its_test() -> None:
    sections = re.split(r"^##+ ", (ROOT / "docs" / "contracts.md").read_text(), flags=re.MULTILINE)[1:]
    told = dict(section.split("\n", 1) for section in sections)
    assert [title for title, text in told.items() if text.strip() and "Tests: " not in text] == []
