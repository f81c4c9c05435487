"""Code of other people, named by module or by file, and what went wrong where it cannot be imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader, all_suffixes
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


SUFFIXES = tuple(f".{suffix.rpartition('.')[2]}" for suffix in all_suffixes())
KEPT = ("__main__", __name__.partition(".")[0])  # names that are never another's
INSTALLED = {Path(place).resolve() for place in (*sysconfig.get_paths().values(), site.getusersitepackages())}
_folders: set[Path] = set()
"""Those that were first on the path so far."""
_aside: dict[Path, dict[str, ModuleType]] = {}
"""What was imported from each under names that are another's outside of it."""


@contextlib.contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Have a folder's modules be found first, though other people's or the program's own are called the same.

    Python keeps modules by name alone: of two files that import `layers` from beside them the second would get the
    first one's. Afterwards names mean what they meant before.
    """
    clashing = names_of_others(folder)
    others = taken_out(clashing)
    sys.modules.update(_aside.pop(folder, {}))
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        _folders.add(folder)
        if clashing:
            _aside[folder] = taken_out(clashing)
            sys.modules.update(others)


def names_of_others(folder: Path) -> set[str]:
    """Return the names of a folder's modules and packages under which those of another such folder are loaded."""
    found = set()
    with contextlib.suppress(OSError):
        others = {*_folders, Path.cwd(), *folders_of(sys.modules["__main__"])} - {folder, *INSTALLED}
        for path in folder.iterdir():
            name = path.name.partition(".")[0]
            if name in sys.modules and name not in KEPT and is_code(path):
                found |= set() if others.isdisjoint(folders_of(sys.modules[name])) else {name}
    return found


def is_code(path: Path) -> bool:
    return any(path.glob("*.py")) if path.is_dir() else path.suffix in SUFFIXES


def taken_out(names: set[str]) -> dict[str, ModuleType]:
    """Take the modules of these names, and what lies in those that are packages, from what is loaded."""
    found = [name for name in list(sys.modules) if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}


def folders_of(module: ModuleType) -> set[Path]:
    """Return the folders that a module or a package lies in."""
    file = getattr(module, "__file__", None)
    return {Path(place).resolve().parent for place in getattr(module, "__path__", [file] if file else [])}


def said(error: Exception | SystemExit) -> str:
    """Return an error as one line, and how to install what is not there."""
    lines = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return line
    package = error.name.partition(".")[0]
    return f"{line} (if it is a package: pip install '{INSTALLED_AS.get(package, package)}')"
