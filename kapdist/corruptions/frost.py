"""What is laid over an image as frost: photographs, where a folder has them, or drawn crystals.

The published sets took five photographs whose origin and terms nobody states, so none come with kapdist. The drawn
pictures have their mean colours and their contrast and nothing else of them: numbers for `frost` are then not
comparable with published ones, and the summary says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kapdist.corruptions.filters import motion
from kapdist.corruptions.pixels import Image, to_bytes
from kapdist.corruptions.plasma import plasma
from kapdist.errors import InputError
from kapdist.rng import generator
from kapdist.run.files import file_sha256

NUM_PICTURES = 5  # the authors' script draws among the first five of its six
DRAWN = "drawn"
DRAWN_SIDE = 512
SUFFIXES = (".png", ".jpg", ".jpeg")

# Mean red, green and blue, and standard deviation of the brightness, of the photographs: levels of 255.
COLOURS = (
    ((78, 149, 166), 18),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 28),
    ((112, 123, 135), 43),
)
ROUGHNESS = 1.35  # decay of the cloud under the needles
NEEDLE_SHARE = 0.01  # of pixels that a needle starts at
NEEDLE_LENGTH, NEEDLE_STD = 24, 9.0
SYMMETRY = 6  # directions of growth of ice
NEEDLE_WEIGHT = 0.6


@dataclass(frozen=True)
class FrostSource:
    """The pictures of frost: a folder of photographs, or None for the drawn ones."""

    folder: Path | None = None
    name: str = DRAWN
    """What decides the pictures: "drawn", or the sha256 of the photographs."""

    @staticmethod
    def of(folder: Path | None) -> FrostSource:
        """Return the photographs in a folder as they are now; without one the drawn pictures."""
        if folder is None:
            return FrostSource()
        sums = "".join(file_sha256(path) for path in photographs(folder))
        return FrostSource(folder, hashlib.sha256(sums.encode()).hexdigest())

    def layer(self, height: int, width: int, scale: float, random: np.random.Generator) -> Image:
        """Return a random cut, (height, width, 3), of one of the pictures at this scale."""
        pictures = scaled_pictures(self, scale)
        picture = pictures[random.integers(0, len(pictures))]
        picture = at_least(picture, height + 1, width + 1)
        top = random.integers(0, picture.shape[0] - height)
        left = random.integers(0, picture.shape[1] - width)
        return picture[top : top + height, left : left + width]


def photographs(folder: Path) -> list[Path]:
    """Return the first five photographs of a folder, by name.

    Raises:
        InputError: there is none.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(
            "corruptions.frost", f"a folder with photographs of frost ({', '.join(SUFFIXES)})", f"{folder}"
        )
    return found[:NUM_PICTURES]


@lru_cache(maxsize=8)
def scaled_pictures(source: FrostSource, scale: float) -> tuple[Image, ...]:
    if source.folder is None:
        pictures = [drawn(index) for index in range(NUM_PICTURES)]
    else:
        pictures = [opened(path) for path in photographs(source.folder)]
    if scale == 1:
        return tuple(pictures)
    return tuple(cv2.resize(picture, (0, 0), fx=scale, fy=scale).astype(np.uint8) for picture in pictures)


def opened(path: Path) -> Image:
    try:
        return np.asarray(PIL.Image.open(path).convert("RGB"))
    except OSError as error:
        raise InputError(path, "a photograph", str(error).splitlines()[0]) from None


def at_least(picture: Image, height: int, width: int) -> Image:
    """Enlarge a picture that is too small for a cut of this size."""
    factor = max(height / picture.shape[0], width / picture.shape[1])
    if factor <= 1:
        return picture
    size = max(width, round(picture.shape[1] * factor)), max(height, round(picture.shape[0] * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)


@lru_cache(maxsize=NUM_PICTURES)
def drawn(index: int) -> Image:
    """Draw frost: clouds of ice and needles that grow in six directions; the same ones at every call."""
    random = generator(0, "frost", index)
    cloud = standardised(plasma(DRAWN_SIDE, DRAWN_SIDE, ROUGHNESS, random))
    texture = standardised(cloud + NEEDLE_WEIGHT * standardised(needles(random)))
    colour, std = COLOURS[index]
    return to_bytes((np.array(colour) + std * texture[..., None]) / 255)


def needles(random: np.random.Generator) -> NDArray[np.float64]:
    first = random.uniform(0, 360 / SYMMETRY)
    grown = np.zeros((DRAWN_SIDE, DRAWN_SIDE))
    for direction in range(SYMMETRY):
        starts = (random.random(grown.shape) < NEEDLE_SHARE) * random.random(grown.shape)
        grown += motion(starts, NEEDLE_LENGTH, NEEDLE_STD, first + direction * 360 / SYMMETRY)
    return grown


def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean()
    return centred / centred.std()
