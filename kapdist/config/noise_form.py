"""Runs from when the noise came before the average: the same keys would mean another model, so they are refused.

Whatever this version writes of a model says `norm_first` beside the noise; what lacks it is older.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapdist.errors import InputError


def check_noise_form(place: object, kap: object) -> None:
    """Refuse a written section kap whose noise came before an average.

    Noise alone and averages alone mean what they did.

    Args:
        place: the file that the section was read from.

    Raises:
        InputError: names the key whose meaning changed.
    """
    if not isinstance(kap, Mapping) or "norm_first" in kap or not is_averaged(kap) or not kap.get("noise_std"):
        return
    expected = "noise that comes after the average, the only form by now (make it anew under another name)"
    found = f"an older run: {kap['noise_std']} before the average over kap.pool_size = {kap['pool_size']}"
    raise InputError(f"{place}: kap.noise_std", expected, found)


def is_averaged(kap: Mapping[str, Any]) -> bool:
    return kap.get("pool_size", 1) != 1
