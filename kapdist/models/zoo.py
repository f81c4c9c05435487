"""What a network's own configuration says of the images that it is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stated:
    """What a network's own configuration says of its images."""

    resolution: int
    """Side of the square images, pixels."""
    crop_ratio: float
    """Share of the shorter side that the centre crop keeps."""
    interpolation: str
    """area, bilinear or bicubic."""
    mean: tuple[float, float, float]
    """Of each channel of images in [0, 1], as `std`."""
    std: tuple[float, float, float]


def stated(factory: str) -> Stated | None:
    """Return what a network's own configuration says of its images; None where it says nothing."""
    return None
