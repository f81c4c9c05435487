"""The house of docs/house.md, read off the code: rooms, who may import whom, and what a login node may need."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools import house

ROOT = Path(__file__).parents[1]
AT_THE_DOOR = {"api", "cli", "errors", "rng", "environment", "jit"}
FROM_OUTSIDE = {"api", "cli"}  # which no room imports
# Every room and the rooms that its files may import at run time; all may import what else stands at the door.
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "run": {"config"},
    "statistics": set(),
    "records": {"config", "run", "statistics"},
    "plan": {"config"},
    "kap": set(),
    "models": {"kap"},
    "engine": {"config", "run"},
    "data": {"config", "run", "plan"},
    "train": {"config", "run", "records", "plan", "kap", "models", "engine", "data", "attack", "tracking"},
    "tracking": {"config", "run", "records"},
    "attack": {"config", "run", "statistics", "records", "kap", "models", "engine", "data", "tracking"},
    "sanity": {"config", "run", "statistics", "records", "kap", "attack", "certify", "tracking"},
    "corruptions": {"config", "run", "statistics", "records", "kap", "data", "attack", "tracking"},
    "certify": {"config", "run", "statistics", "records", "kap", "models", "attack", "tracking"},
    "topography": {"config", "run", "statistics", "records", "kap", "models", "engine", "data", "train", "report"},
    "report": {"config", "run", "statistics", "records", "data", "tracking"},
    "overview": {"config", "run", "records"},
    "doctor": {"run", "kap"},
    "forecast": {"config", "run", "records", "plan", "kap", "models", "data", "attack"},
    "publish": {"config", "run", "statistics", "records", "kap", "models", "data", "attack", "report"},
    "study": {"config", "run", "statistics", "records", "attack", "report"},
}
NO_TORCH = ("config", "run", "statistics", "records", "plan", "report", "tracking", "overview", "doctor")
ONLY_IN = {"ffcv": "data", "pyautoattack": "attack", "deepspeed": "engine", "submitit": "launch"}
ONLY_IN |= {"wandb": "tracking", "mlflow": "tracking"}
LAUNCH_NEEDS = {"kapdist", "launch", "submitit", "pydantic", "rich"}
LAUNCH_IMPORTS = {"config", "run", "records", "plan", "study", *AT_THE_DOOR}
IN_A_JOB = {"rank.py", "aggregate.py"}
NEVER = {"torchvision", "timm", "launch", "tools"}


def files() -> list[Path]:
    return house.files("kapdist")


def launched() -> list[Path]:
    return house.files("launch")


def imports(path: Path, counts: Callable[[ast.AST], bool] = lambda node: True) -> Iterator[str]:
    for name, part in house.imports(path, counts):
        yield name
        yield f"{name}.{part}"


def room(path: Path) -> str:
    return path.relative_to(ROOT / "kapdist").parts[0].removesuffix(".py")


def test_every_file_stands_in_a_room() -> None:
    found = {path.name.removesuffix(".py") for path in (ROOT / "kapdist").glob("[!_]*")}
    assert found == {*ROOMS, *AT_THE_DOOR, "configs", "py.typed"}
    assert (ROOT / "kapdist" / "configs").samefile(ROOT / "configs")  # a link, for the wheel


def test_imports_point_one_way() -> None:
    for path in files():
        points_one_way(path)


def points_one_way(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        top, *rest = name.removesuffix(".").split(".")  # `import kapdist`: the package itself imports nothing
        assert top not in NEVER, f"{path}: imports {name}"
        assert ONLY_IN.get(top, here) == here, f"{path}: {top} belongs to {ONLY_IN.get(top)}/"
        if top == "kapdist" and rest and rest[0] != here and here in ROOMS:
            assert rest[0] in ROOMS[here] | AT_THE_DOOR - FROM_OUTSIDE, f"{path}: {here} may not import {rest[0]}"
        if top == "kapdist" and rest and here in AT_THE_DOOR - FROM_OUTSIDE:
            assert rest[0] in AT_THE_DOOR - FROM_OUTSIDE | {"run"}, f"{path}: may not import {rest[0]}"


def test_no_files_import_each_other() -> None:
    """Not through others either, and not where the import is inside of a function."""
    assert house.circles(house.arrows([*files(), *launched()])) == []


def test_a_circle_is_seen() -> None:
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert house.circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_drawing_of_the_house_is_the_code_s() -> None:
    page = (ROOT / "docs" / "house.md").read_text()
    begin, end = "<!-- drawing: python tools/house.py -->\n```mermaid\n", "\n```\n<!-- end of drawing -->"
    drawn = page.partition(begin)[2].partition(end)[0]
    assert drawn == house.drawing(), "put what `python tools/house.py` prints between the marks of docs/house.md"


def test_launch_imports_what_a_login_node_has() -> None:
    """Only what runs inside of a job imports more, when it is called."""
    for path in launched():
        has_a_login_node(path)


def has_a_login_node(path: Path) -> None:
    begun: set[int] = set()

    def counts(node: ast.AST) -> bool:
        if isinstance(node, ast.Module):
            begun.update(map(id, node.body))
        return path.name not in IN_A_JOB or id(node) in begun

    for name in imports(path, counts):
        top, *rest = name.split(".")
        assert top in sys.stdlib_module_names | LAUNCH_NEEDS, f"{path}: imports {name}"
        if top == "kapdist" and rest:
            assert rest[0] in LAUNCH_IMPORTS, f"{path}: a login node should not need {name}"


# Their JSON is hashed, or a line of integers and text.
WITH_THEIR_OWN_JSON = {"run/files.py", "rng.py", "data/beton/journal.py", "run/lock.py", "models/description.py"}


def test_json_is_written_without_nan() -> None:
    """`run.files.to_json` writes null where a number is not finite; json.dumps writes what is no JSON."""
    for path in [*files(), *launched()]:
        writes_json_without_nan(path)


def writes_json_without_nan(path: Path) -> None:
    called = (node.func for node in ast.walk(house.parsed(path)) if isinstance(node, ast.Call))
    calls = {ast.unparse(function) for function in called if isinstance(function, ast.Attribute)}
    own = path.relative_to(ROOT).as_posix().removeprefix("kapdist/") in WITH_THEIR_OWN_JSON
    assert own or not {"json.dumps", "json.dump"} & calls, path


def modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, cwd=ROOT)
    return {part for name in done.stdout.split() for part in (name, name.split(".")[0])}


def test_the_help_loads_nothing_that_takes_long() -> None:
    shown = modules_after("from kapdist.cli import app; app(['--help'], standalone_mode=False)")
    assert "typer" in shown
    assert not {"rich", "torch", "numpy", "pydantic", "omegaconf", "asyncio"} & shown


def everything_in(name: str) -> str:
    return "import " + ", ".join(house.module(path) for path in files() if room(path) == name)


@pytest.mark.parametrize("name", NO_TORCH)
def test_a_login_node_s_rooms_load_no_torch(name: str) -> None:
    assert not {"torch", "ffcv", "deepspeed", "cv2", "numba"} & modules_after(everything_in(name))


def test_submitting_and_looking_need_no_torch() -> None:
    loaded = modules_after("import launch.train, launch.attack, launch.status.table")
    assert not {"torch", "ffcv", "deepspeed", "numpy", "polars", "matplotlib"} & loaded


def test_statistics_is_numpy_alone() -> None:
    assert not {"torch", "pydantic", "polars", "rich"} & modules_after(everything_in("statistics"))


def test_training_loads_neither_attack_library_nor_compiler() -> None:
    assert not {"pyautoattack", "torch._dynamo"} & modules_after(everything_in("train"))


def test_help_loads_nothing_heavy() -> None:
    assert not {"torch", "pydantic", "polars", "matplotlib", "ffcv"} & modules_after("import kapdist.cli")


def test_files_and_functions_stay_small() -> None:
    for path in [*files(), *launched(), *sorted((ROOT / "tools").rglob("*.py"))]:
        text = path.read_text()
        assert text.count("\n") <= 400, f"{path}: more than 400 lines"
        for node in ast.walk(house.parsed(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is too long"
