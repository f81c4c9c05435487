"""Which columns of a table hold images and labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the images (bytes, or a struct with bytes) and the labels."""

    image: str = "image"
    label: str = "label"
