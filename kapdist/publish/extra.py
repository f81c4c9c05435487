"""The packages of the extra `hub`, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from kapdist.errors import InputError, first_line


def needed(name: str, place: str) -> Any:
    """Import a package of the extra.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(place, f"{name} (pip install 'kapdist[hub]')", first_line(error)) from None
