"""Modules that are not there: which of kapdist's extras brings them, in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator

from kapdist.errors import InputError

OTHERWISE = {
    "cv2": "opencv-python",
    "mlflow": "mlflow-skinny",
    "pil": "pillow",
    "yaml": "pyyaml",
}  # names of modules and packages
SUMS = {"all", "dev"}  # extras that repeat what others bring


def need(*modules: str, place: str = "") -> None:
    """Raise InputError if one of these modules, each brought by an extra, is not there; nothing is imported.

    Args:
        place: the key or option that asks for them.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise missing(module, place) or ModuleNotFoundError(f"No module named {module!r}", name=module)


@contextlib.contextmanager
def extras_named() -> Iterator[None]:
    """Raise InputError for a module that is missing and that kapdist or an extra of it would have brought."""
    try:
        yield
    except ModuleNotFoundError as error:
        if told := missing(error.name or ""):
            raise told from None
        raise


def missing(module: str, place: str = "") -> InputError | None:
    """Return what is to be said where a module is not there; None for one that kapdist does not depend on."""
    package = module.partition(".")[0]
    brought_by = extra_of(package)
    if brought_by is None:
        return None
    name = f"kapdist[{brought_by}]" if brought_by else "kapdist"
    what = package if place else "the package"
    return InputError(place or package, f"{what} (pip install '{name}')", "none")


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module, "" for what kapdist alone does, None for no dependency of it."""
    from importlib import metadata

    name = normal(OTHERWISE.get(module.lower(), module))
    try:
        requirements = metadata.requires("kapdist") or []
    except metadata.PackageNotFoundError:  # its files lie here, and nothing says what they need
        return None
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if package and normal(package[0]) == name and not (extra and extra[1] in SUMS):
            return extra[1] if extra else ""
    return None


def normal(name: str) -> str:
    """Return a package's name as names of packages are compared (PyPA, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()
