"""The package imagecorruptions 1.1.2 on the random numbers that kapdist's own corruptions are given.

It was written for numpy 1 and scikit-image 0.18; two names that have gone since are put back while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image


class Legacy:
    """numpy's old generator under the names of the new one."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, {"integers": "randint"}.get(name, name))


def as_of_2021(patch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """Return (kind, image, severity, seed) -> the package's own image; skip where it is absent."""
    corruptions = pytest.importorskip("imagecorruptions.corruptions", reason="imagecorruptions is not installed")
    gaussian = corruptions.gaussian

    def with_channels(image: Any, *args: Any, multichannel: bool = False, **kwargs: Any) -> Any:
        return gaussian(image, *args, channel_axis=-1 if multichannel else None, **kwargs)

    patch.setattr(np, "float_", np.float64, raising=False)
    patch.setattr(corruptions, "gaussian", with_channels)

    def made(kind: str, image: np.ndarray, severity: int, seed: int) -> np.ndarray:
        np.random.seed(seed)
        return np.uint8(getattr(corruptions, kind)(Image.fromarray(image), severity))

    return made
