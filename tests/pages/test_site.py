"""The documentation is built as `make docs` builds it: no warning, all that the code has in it, nothing fetched."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import kapdist.records
from kapdist import cli
from kapdist.config import AttackConfig, Config, Section, dotted_keys
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.study import StudyConfig
from kapdist.records.record import Record
from launch.cluster import ClusterConfig
from tools.pages import commands as reference
from tools.pages import drawing, keys

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "training": Config,
    "attack": AttackConfig,
    "evaluation": EvaluationConfig,
    "certification": CertifyConfig,
    "study": StudyConfig,
    "cluster": ClusterConfig,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning of mkdocs fails, whatever it is of: a link, a heading, a page of the nav."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install 'kapdist[docs]')")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder, patch = tmp_path_factory.mktemp("site"), pytest.MonkeyPatch()
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    with patch.context() as here:
        here.chdir(ROOT)
        here.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    logging.getLogger("mkdocs").removeHandler(handler)
    assert warned == []
    return folder


def commands(command: Any, words: str = "kapdist") -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        yield from commands(one, f"{words} {name}")
    if not inner:
        yield words, command


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_in_the_reference(site: Path, name: str) -> None:
    page = (site / "reference" / f"{name}.html").read_text()
    assert [key for key in dotted_keys(CONFIGS[name]) if f'id="{key}"' not in page] == []


@pytest.mark.parametrize("config", CONFIGS.values())
def test_every_key_has_a_line(config: type[Section]) -> None:
    silent = [key.name for key in keys.keys_of(config) if not key.field.description and key.section is None]
    assert silent == []


def test_what_is_said_of_a_key_is_what_the_config_does(site: Path) -> None:
    page = unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "training.html").read_text()))
    said = dict(re.findall(r"^(\w+\.\w+)¶\n+([^\n]+)", page, flags=re.MULTILINE))
    assert said["optim.momentum"] == "number, at least 0, below 1; default 0.9"
    assert said["kap.layout"] == "sheet · line; default sheet"
    assert said["data.train"] == "path; required"
    assert said["train.batch_size"] == "whole number, at least 1 or none; default none"
    assert said["data.translate"] == "whole number, at least 0, at most 64; default 0"
    assert said["train.epochs"] == "whole number, at least 1; default 16; follows"
    assert said["data.workers"].endswith("may change when a run is continued")


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = unescape((site / "reference" / "commands.html").read_text())
    found = list(commands(typer.main.get_command(cli.app)))
    assert len(found) > 20
    for words, command in found:
        section = page.partition(f">{words}<a")[2].partition("<h2")[0]
        assert section, words
        names = [
            name for word in command.params for name in word.opts if name.startswith("--") and name != "--help"
        ]
        assert [name for name in names if f"<code>{name}</code>" not in section] == [], words
    for name in ("train", "attack", "study", "status"):
        assert f"usage: launch/{name}.py" in page
        assert f">python launch/{name}.py<a" in page


def test_a_row_of_a_command_has_its_cells_and_a_default_of_zero() -> None:
    tables = {words: reference.table(command).splitlines() for words, command in reference.commands()}
    for words, rows in tables.items():
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {4}, words
    assert any(row.endswith("| `0` |") for row in tables["kapdist topography"] if "--seed" in row)


def test_the_python_face_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    names = [*kapdist.CALLED, "evaluate"]
    for module in ("kapdist.kap", "kapdist.models"):
        names += importlib.import_module(module).__all__
    assert [name for name in names if f">{name}<a" not in page] == []


def test_every_record_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "files.html").read_text()
    absent, number = [], 0
    for found in pkgutil.iter_modules(kapdist.records.__path__):
        module = importlib.import_module(f"kapdist.records.{found.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Record) and kind.model_fields and kind.__module__ == module.__name__:
                number += 1
                here = page.partition(f">{found.name}<a")[2].partition("<h2")[0]
                section = here.partition(f">{name}<a")[2].partition("<h3")[0]
                absent += [f"{name}.{key}" for key in kind.model_fields if f"<code>{key}</code>" not in section]
    assert number > 30
    assert absent == []


def test_every_page_is_in_the_nav(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"]))
    built = {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")} - {"404"}
    named = {name.removesuffix(".md").replace("README", "index") for name in listed}
    brought = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in ROOT.glob("docs/**/*.html")}
    assert sorted(built - named - brought) == [], "pages without a place: add them to the nav of mkdocs.yml"


def test_nothing_is_fetched(site: Path) -> None:
    """A page that is opened from a disk, on a machine without a network, is whole."""
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", page.read_text())
        fetched = [tag for tag in tags if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)]
        assert fetched == [], page
    assert (site / "search" / "search_index.js").read_text().startswith("var __index = ")
    assert 'src="assets/iframe-worker.js"' in (site / "index.html").read_text()


def test_the_house_is_drawn_without_a_script(site: Path) -> None:
    page = (site / "house.html").read_text()
    assert "graph TD" not in page
    for room in {room for arrow in arrows_of_the_house() for room in arrow}:
        assert f">{room}</text>" in page, room


def arrows_of_the_house() -> list[tuple[str, str]]:
    return drawing.ARROW.findall((ROOT / "docs" / "house.md").read_text())


def test_arrows_point_down_and_no_box_lies_on_another() -> None:
    arrows = arrows_of_the_house()
    places = drawing.placed(arrows)
    assert all(places[start][1] < places[end][1] for start, end in arrows)
    assert len(set(places.values())) == len(places)
    for x, y in places.values():
        others = [other for other in places.values() if other != (x, y) and other[1] == y]
        assert all(abs(x - other[0]) >= drawing.WIDTH + drawing.GAP_X for other in others)
