"""The import directions of docs/design.md, read off the code."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUND = {
    "config",
    "config_adversarial",
    "config_evaluation",
    "config_yaml",
    "configfile",
    "cpus",
    "descriptors",
    "ends",
    "environment",
    "epsilon",
    "errors",
    "config_attack",
    "fields",
    "section",
    "forecast",
    "forecast_view",
    "lock",
    "plan",
    "plan_adversarial",
    "progress",
    "rng",
    "rundir",
    "sealed",
    "sharding",
    "signals",
    "slurm",
    "standard_output",
}
MAY_IMPORT = {
    "kap": set(),
    "models": {"kap"},
    "data": set(),
    "engine": set(),
    "train": {"engine", "data", "models", "kap"},
    "attack": {"engine", "data", "models", "kap"},
    "report": set(),
    "planner": {"attack", "train", "data"},
    "cli": {"report", "planner", "attack", "train", "data"},
}
ONLY_IN = {"ffcv": "data", "pyautoattack": "attack", "deepspeed": "engine", "submitit": "launch"}
LAUNCH_NEEDS = {"kapdist", "launch", "submitit", "pydantic", "rich"}
IN_A_JOB = {"rank.py", "aggregate.py"}
NEVER = {"torchvision", "timm", "launch", "tools"}


def imports(path: Path, counts: Callable[[ast.AST], bool] = lambda node: True) -> Iterator[str]:
    """Every module that a file imports at run time; imports for annotations alone do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or not counts(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    return sorted((ROOT / "kapdist").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "kapdist").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    rooms = {p.name.removesuffix(".py") for p in (ROOT / "kapdist").iterdir()}
    here = room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in NEVER, f"{path}: imports {name}"
        assert ONLY_IN.get(top, here) == here, f"{path}: {top} belongs to {ONLY_IN.get(top)}/"
        if here in GROUND:
            assert top not in {"torch", "ffcv", "deepspeed"}, f"{path}: a login node should not need {top}"
        if top == "kapdist" and rest and rest[0] in rooms and rest[0] != here:
            allowed = GROUND | (MAY_IMPORT[here] if here not in GROUND else set())
            assert rest[0] in allowed, f"{path}: {here} may not import {rest[0]}"


def launched() -> list[Path]:
    return sorted((ROOT / "launch").glob("*.py"))


@pytest.mark.parametrize("path", launched(), ids=lambda path: path.name)
def test_launch_stands_on_the_ground(path: Path) -> None:
    """What a login node loads; only what runs inside of a job imports more, when it is called."""
    tree = ast.parse(path.read_text())
    begun = {id(node) for node in tree.body}
    for name in imports(path, lambda node: path.name not in IN_A_JOB or id(node) in begun):
        top, *rest = name.split(".")
        assert top in sys.stdlib_module_names | LAUNCH_NEEDS, f"{path}: imports {name}"
        if top == "kapdist" and rest:
            assert rest[0] in GROUND, f"{path}: a login node should not need {name}"


# Their JSON is hashed, or a line of integers and text.
WITH_THEIR_OWN_JSON = {"rundir.py", "rng.py", "journal.py", "lock.py", "description.py", "plan.py"}


@pytest.mark.parametrize("path", [*files(), *launched()], ids=lambda path: path.name)
def test_json_is_written_without_nan(path: Path) -> None:
    """`rundir.to_json` writes null where a number is not finite; json.dumps writes what is no JSON."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert path.name in WITH_THEIR_OWN_JSON or not {"json.dumps", "json.dump"} & calls


def test_submitting_and_looking_need_no_torch() -> None:
    loaded = modules_after("import launch.train, launch.status, launch.status.table")
    assert not {"torch", "ffcv", "deepspeed", "numpy", "polars", "matplotlib"} & loaded


def modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_ground_needs_no_torch() -> None:
    loaded = modules_after("import " + ", ".join(f"kapdist.{name}" for name in sorted(GROUND)))
    assert not {"torch", "ffcv", "polars", "matplotlib"} & loaded


def test_kap_and_models_run_with_torch_and_numpy_alone() -> None:
    loaded = modules_after("import kapdist.kap, kapdist.models")
    assert not {"pydantic", "omegaconf", "ffcv", "safetensors", "polars", "rich", "typer"} & loaded


def test_help_loads_nothing_heavy() -> None:
    assert not {"torch", "pydantic", "polars", "matplotlib", "ffcv"} & modules_after("import kapdist.cli")


def test_files_and_functions_stay_small() -> None:
    for path in [*files(), *launched(), *sorted((ROOT / "tools").rglob("*.py"))]:
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path}: more than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is too long"
