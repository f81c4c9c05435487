"""What is said where a module is missing, and that every module which is imported is declared somewhere."""

from __future__ import annotations

import ast
import importlib
import sys

import pytest

from kapdist.attack.units import child_main
from kapdist.errors import InputError
from kapdist.run.installed import extra_of, extras_named, need
from launch.call import run_as_command
from launch.restarts import WRONG_INPUT
from tools import house

BROUGHT_BY = {"triton": "torch", "llvmlite": "numba", "markupsafe": "jinja2"}
FIRST = {"torch": "", "numpy": "", "cv2": "", "PIL": "", "yaml": "", "tensorboard": "train", "matplotlib": "train"}
LATER = {"jinja2": "train", "deepspeed": "train", "ffcv": "ffcv", "submitit": "cluster", "timm": "zoo"}


@pytest.mark.parametrize(("module", "extra"), [*FIRST.items(), *LATER.items(), ("json", None), ("scipy", None)])
def test_the_extra_of_a_module_is_the_metadata_s(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


def test_every_module_that_is_imported_is_declared() -> None:
    """Wherever it is imported: a command that comes without it can then say who brings it."""
    imported = {}
    for path in [*house.files("kapdist"), *house.files("launch")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            imported |= {name.partition(".")[0]: path for name in names}
    for own in sys.stdlib_module_names | {"kapdist", "launch"}:
        imported.pop(own, None)
    undeclared = {top: path for top, path in imported.items() if extra_of(BROUGHT_BY.get(top, top)) is None}
    assert undeclared == {}


def missing_tensorboard(*_: object) -> None:
    raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard.summary")


TOLD = "tensorboard: expected the package (pip install 'kapdist[train]'), found none"


def test_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError) as caught, extras_named():
        importlib.import_module("tensorboard")
    assert str(caught.value) == TOLD
    with pytest.raises(InputError) as caught:
        need("torch", "tensorboard")
    assert str(caught.value) == TOLD
    need("torch", "numpy")


def test_what_nobody_brings_is_no_fault_of_the_user_s() -> None:
    with pytest.raises(ModuleNotFoundError), extras_named():
        importlib.import_module("nobody_s_module")


def test_a_rank_and_a_child_say_it_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.call.signal.signal", lambda *_: None)  # they are this process's
    with pytest.raises(SystemExit) as left:
        run_as_command(missing_tensorboard)
    assert left.value.code == WRONG_INPUT
    assert capsys.readouterr().err == f"kapdist: {TOLD}\n"
    assert child_main(missing_tensorboard, ["somewhere", "0", "1"]) == 2
    assert capsys.readouterr().err == f"{TOLD}\n"
