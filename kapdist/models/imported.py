"""Code of other people, named by module or by file, and what went wrong where it cannot be imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from kapdist.errors import InputError

# What pip is asked for where it is not the package's name; what no registry has, or has broken, from its site.
INSTALLED_AS = {
    "timm": "kapdist[zoo]",
    "torchvision": "kapdist[zoo]",
    "robustbench": "git+https://github.com/RobustBench/robustbench",
    "autoattack": "git+https://github.com/fra31/auto-attack",
}


MODEL = "model.factory"  # the key that most functions of other people are named by


def place_of(factory: str, key: str = MODEL) -> str:
    return f"{key}={factory}"


def folder_of(module: str) -> Path:
    """Return what stands first on the path, as python would have it: the file's folder, or the current one."""
    return Path(module).resolve().parent if module.endswith(".py") else Path.cwd()


def import_module(name: str, place: str) -> ModuleType:
    """Import a module by name or by file."""
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise InputError(place, f"the file {name}", "no such file")
    with first_on_path(folder_of(name)):
        try:
            return import_file(Path(name)) if is_file else importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script without a main guard ends python
            raise InputError(place, "a module that can be imported", said(error)) from error


class FromSource(SourceFileLoader):
    """Compiles a file as it is: bytecode is told by time and size alone, and what runs is to be what is hashed."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def import_file(path: Path) -> ModuleType:
    name = f"kapdist_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=FromSource(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


_beside: dict[Path, dict[str, ModuleType]] = {}
"""What was imported from a folder while it was first on the path, by folder and name."""
_aside: dict[Path, dict[str, ModuleType]] = {}
"""Of these, what another folder's modules of the same name have taken the place of."""


@contextlib.contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Have modules be found in a folder first, though another folder's of the same name were imported before.

    Python keeps modules by name alone: of two files that import `layers` from beside them the second would get the
    first one's.
    """
    make_way_for(folder)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        note_imported(folder, before)


def make_way_for(folder: Path) -> None:
    for other, modules in _beside.items():
        if other == folder:
            continue
        for name, module in modules.items():
            if sys.modules.get(name) is module and PathFinder.find_spec(top_of(name), [str(folder)]):
                _aside.setdefault(other, {})[name] = sys.modules.pop(name)
    sys.modules.update(_aside.pop(folder, {}))


def note_imported(folder: Path, before: set[str]) -> None:
    own = _beside.setdefault(folder, {})
    for name in set(sys.modules) - before:
        top = top_of(name)
        if top in own or (top not in before and lies_in(sys.modules.get(top), folder)):
            own[name] = sys.modules[name]


def top_of(name: str) -> str:
    return name.partition(".")[0]


def lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Tell whether a module or a package lies in a folder itself, and not deeper, as what is installed may."""
    file = getattr(module, "__file__", None)
    places = [*getattr(module, "__path__", [file] if file else [])]
    return any(Path(place).resolve().parent == folder for place in places)


def said(error: Exception | SystemExit) -> str:
    """Return an error as one line, and how to install what is not there."""
    lines = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return line
    package = error.name.partition(".")[0]
    return f"{line} (if it is a package: pip install '{INSTALLED_AS.get(package, package)}')"
