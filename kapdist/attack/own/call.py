"""Where code of the user's failed, and which global random numbers it took."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORKED = "others' code under torch.random.fork_rng() and torch.manual_seed(generator.initial_seed())"
INSTEAD = {
    "torch's": FORKED,
    "torch's GPU": FORKED,
    "numpy's": "numpy.random.default_rng(generator.initial_seed())",
    "Python's": "random.Random(generator.initial_seed())",
}
"""What takes its numbers from the generator that a function is given, for each global one."""


def where(error: BaseException, function: Callable[..., Any]) -> str:
    """Return the last line of the function's file that an error came through, or of any where none is known."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    *_, last = [frame for frame in frames if frame.filename == file] or frames
    return f"{Path(last.filename).name}, line {last.lineno}"


def global_states(device: torch.device) -> dict[str, Any]:
    """Return where each global random generator stands, as values that can be compared."""
    _, key, *position = np.random.get_state()
    states = {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "numpy's": (np.asarray(key).tobytes(), *position),
        "Python's": random.getstate(),
    }
    if device.type == "cuda":
        states["torch's GPU"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states
