"""What decodes: FFCV's machinery, or simplejpeg where there is no FFCV. The same order, crops and flips."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kapdist.config import DataConfig
from kapdist.data.load.ffcv import why_no_ffcv
from kapdist.data.load.task import Backend, Task
from kapdist.errors import InputError

log = logging.getLogger(__name__)


def make_backend(task: Task) -> Backend:
    """Return the backend that data.backend names; auto takes FFCV where it can be imported.

    Raises:
        InputError: FFCV is asked for and cannot be imported, or simplejpeg is needed and cannot.
    """
    return BACKENDS[chosen_backend(task.config)](task)


def chosen_backend(config: DataConfig) -> str:
    """Return the name of the backend.

    Raises:
        InputError: FFCV is asked for and cannot be imported.
    """
    missing = why_no_ffcv()
    if config.backend == "ffcv" and missing:
        raise InputError("data.backend", "FFCV (or data.backend=torch)", f"none: {missing}")
    if config.backend == "auto":
        if missing:
            log.warning("data.backend=auto takes torch: FFCV cannot be imported (%s)", missing)
        return "torch" if missing else "ffcv"
    return config.backend


def ffcv_backend(task: Task) -> Backend:
    from kapdist.data.load.pipeline import FFCVBackend

    return FFCVBackend(task)


def torch_backend(task: Task) -> Backend:
    from kapdist.data.load.simplejpeg import TorchBackend

    return TorchBackend(task)


BACKENDS: dict[str, Callable[[Task], Backend]] = {"ffcv": ffcv_backend, "torch": torch_backend}
