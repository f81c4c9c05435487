"""What jobs call exists, and takes what it is given: nobody imports it before a node does."""

from __future__ import annotations

import ast
import inspect
import pickle
import pkgutil
from pathlib import Path

import pytest

from kapdist.run.paths import RunDir
from launch.call import Call

LAUNCH = Path(__file__).parents[2] / "launch"


def queued() -> list[tuple[str, int]]:
    """Return the function and the number of arguments of every Call that is written down in launch/."""
    nodes = [node for path in sorted(LAUNCH.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "Call"]
    return sorted({(ast.literal_eval(node.args[0]), len(node.args[1].elts)) for node in calls})


def test_all_calls_are_found() -> None:
    functions = [function.rpartition(":")[2] for function, _ in queued()]
    assert functions == ["run_shard", "aggregate", "ask_model", "finish_study", "plan_attack", "train"]


@pytest.mark.parametrize(("function", "arguments"), queued())
def test_what_is_called_takes_its_arguments(function: str, arguments: int) -> None:
    inspect.signature(pkgutil.resolve_name(function)).bind(*range(arguments))


def test_a_call_is_the_same_after_pickling(tmp_path: Path) -> None:
    call = pickle.loads(pickle.dumps(Call("launch.aggregate:aggregate", (RunDir(tmp_path), tmp_path, 3))))
    assert call.function == "launch.aggregate:aggregate"
    assert (call.arguments[0].root, *call.arguments[1:]) == (tmp_path, tmp_path, 3)
