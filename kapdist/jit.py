"""Compilation that is paid once per machine, not once per rank, shard and test."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numba
from numba.core import caching
from numba.core import config as numba_config

from kapdist.environment import cache_root, package_version

config: Any = numba_config  # its settings are made at run time

HERE = Path(__file__).parent
_LOADING = (
    *("augment", "decode", "erase", "floats", "lanes", "operations", "pixels", "rand_augment", "resample"),
    *("resident", "resize", "simplejpeg", "stored", "ycbcr"),
)
_one_at_a_time = threading.RLock()  # numba's settings are the process's: threads would take each other's folder
JITTED = ("jit", "data/beton/checksum", "kap/normal_cpu", *(f"data/load/{name}" for name in _LOADING))


class ByCode(caching.UserProvidedCacheLocator):
    """Finds compiled code whichever copy of its source asks: each job runs a snapshot, and compiling takes long."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        return Path(py_file).parent.name  # numba has the path here; `cache_directory` tells different code apart


def compiled(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile a function without the GIL for one signature, from the disk cache where that is possible."""
    directory = cache_directory()
    if directory is not None:
        # A cache that is damaged, full or on a strange file system must not stop anybody.
        with contextlib.suppress(Exception):
            return cached(function, signature, directory)
    return numba.njit(signature, nogil=True)(function)


def cached(function: Callable[..., Any], signature: Any, directory: Path) -> Callable[..., Any]:
    with _one_at_a_time:
        usual = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(directory), f"{__name__}.{ByCode.__name__}"
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        finally:
            config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = usual


def cache_directory() -> Path | None:
    """Return this user's cache for this very code on this very CPU, None where there cannot be one.

    numba does not look at what a cached function calls, and two processes that cache different code under one
    name may mix it up. With all of it in the name of the directory, whoever writes there writes the same.
    """
    root = cache_root()
    if root is None:
        return None
    directory = root / "numba" / identity()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    mine = directory.stat().st_uid == os.getuid() and os.access(directory, os.W_OK)
    return directory if mine else None


def identity() -> str:
    """Return the sha256 of everything that compiled code depends on."""
    digest = hashlib.sha256()
    for package in ("numba", "llvmlite", "ffcv", "numpy"):
        digest.update(f"{package} {package_version(package)}\n".encode())
    digest.update(llvmlite.binding.get_host_cpu_name().encode())
    digest.update(llvmlite.binding.get_host_cpu_features().flatten().encode())
    for name in JITTED:
        digest.update((HERE / f"{name}.py").read_bytes())
    return digest.hexdigest()
