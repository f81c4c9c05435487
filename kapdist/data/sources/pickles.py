"""Reading a pickle of arrays without letting it call anything."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from kapdist.errors import InputError

PLAIN_ARRAY = "numpy.ndarray"  # a word in the class's place: it cannot be called


def empty_array(kind: Any, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """Return the array that a pickle then fills: numpy's own first step, for plain arrays alone."""
    if kind != PLAIN_ARRAY or shape != (0,):
        raise pickle.UnpicklingError("an array of an unusual kind")
    return np.ndarray((0,), np.int8)


def latin1(text: str, codec: str) -> bytes:
    """Return the bytes that protocol 2 writes as text."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"text in {codec}")
    return text.encode("latin1")


# What arrays, lists and strings need; numpy renamed its package in 2.0.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): empty_array,
    ("numpy._core.multiarray", "_reconstruct"): empty_array,
    ("numpy", "ndarray"): PLAIN_ARRAY,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): latin1,
}


class ArrayUnpickler(pickle.Unpickler):
    """Knows the names in ALLOWED and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"one that asks for {module}.{name}")
        return ALLOWED[module, name]


def read_arrays(content: bytes, place: object) -> dict[str, Any]:
    """Return a pickled dict of arrays, lists and strings; strings of Python 2 are read as latin-1.

    Raises:
        InputError: damaged, not a dict, or it asks for anything else.
    """
    expected = "a pickled dict of arrays, lists and strings"
    try:
        found = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise InputError(place, expected, " ".join(str(error).split()) or type(error).__name__) from error
    if not isinstance(found, dict):
        raise InputError(place, expected, f"a {type(found).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
