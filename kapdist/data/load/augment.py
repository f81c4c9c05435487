"""What is random about a training image: pure functions of (seed, epoch, image), in jitted code.

A draw is a hash of a key and two counters, so it needs no state: the pixels do not depend on the batch, worker,
thread or rank that an image meets. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2660193.2660195) applied to each of the three in turn.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kapdist import rng

# Purposes: counters of different purposes never meet.
FLIP = 1
SHIFT = 2
CUTOUT = 4
CROP = 16
ERASE = 64
OPERATION = 128

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
NUM_OPERATIONS = 14  # of RandAugment; rand_augment.py names them


def epoch_key(seed: int, epoch: int) -> int:
    """Return the key of an epoch's draws, 63 bits."""
    return rng.derive_seed(seed, "augmentation", epoch)


@njit(nogil=True)
def mix(value: np.uint64) -> np.uint64:
    """Spread every bit of a 64-bit number over all of them."""
    value = (value ^ (value >> np.uint64(30))) * FIRST
    value = (value ^ (value >> np.uint64(27))) * SECOND
    return value ^ (value >> np.uint64(31))


@njit(nogil=True)
def bits(key: int, image: int, counter: int) -> np.uint64:
    """Return the 64 random bits that belong to (key, image, counter)."""
    value = mix(np.uint64(key) + GOLDEN)
    value = mix((value ^ np.uint64(image)) + GOLDEN)
    return mix((value ^ np.uint64(counter)) + GOLDEN)


@njit(nogil=True)
def uniform(key: int, image: int, counter: int) -> float:
    """Return the draw in [0, 1) that belongs to (key, image, counter)."""
    return float(bits(key, image, counter) >> np.uint64(11)) * 2.0**-53


@njit(nogil=True)
def flipped(key: int, image: int) -> bool:
    """Return whether the image is mirrored: probability 1/2."""
    return uniform(key, image, FLIP) < 0.5


@njit(nogil=True)
def shift(key: int, image: int, pad: int) -> tuple[int, int]:
    """Return (down, right), each uniform on the whole numbers from -pad to pad."""
    down = int(uniform(key, image, SHIFT) * (2 * pad + 1)) - pad
    right = int(uniform(key, image, SHIFT + 1) * (2 * pad + 1)) - pad
    return down, right


@njit(nogil=True)
def hole(key: int, image: int, side: int, cutout: int) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of cut-out's square, as much of it as lies in a side x side image.

    Its centre is uniform on the pixels, so it may reach over the border (DeVries and Taylor 2017,
    https://arxiv.org/abs/1708.04552, section 3.2).
    """
    top = int(uniform(key, image, CUTOUT) * side) - cutout // 2
    left = int(uniform(key, image, CUTOUT + 1) * side) - cutout // 2
    return max(0, top), min(side, top + cutout), max(0, left), min(side, left + cutout)


@njit(nogil=True)
def random_window(key: int, image: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random resized crop, drawn as torchvision and FFCV draw it.

    Area uniform in SCALE, logarithm of the aspect ratio uniform in RATIO, ten tries, then the largest centred
    window whose ratio is allowed (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842, section 6).
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for attempt in range(TRIES):
        counter = CROP + 4 * attempt
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform(key, image, counter))
        ratio = math.exp(low + (high - low) * uniform(key, image, counter + 1))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(key, image, counter + 2) * (height - h + 1))
            left = int(uniform(key, image, counter + 3) * (width - w + 1))
            return top, left, h, w
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w


@njit(nogil=True)
def erased(key: int, image: int, side: int, probability: float) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of what random erasing takes from a side x side image; empty if nothing.

    Area uniform in ERASED_AREA, logarithm of the aspect ratio uniform in ERASED_RATIO, ten tries for a rectangle
    that is smaller than the image each way, then none, as torchvision draws it (Zhong et al. 2020,
    https://arxiv.org/abs/1708.04896, section 3.2).
    """
    if uniform(key, image, ERASE) >= probability:
        return 0, 0, 0, 0
    low, high = math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])
    for attempt in range(TRIES):
        counter = ERASE + 2 + 4 * attempt
        share = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * uniform(key, image, counter)
        ratio = math.exp(low + (high - low) * uniform(key, image, counter + 1))
        h, w = round(side * math.sqrt(share * ratio)), round(side * math.sqrt(share / ratio))
        if h < side and w < side:
            top = int(uniform(key, image, counter + 2) * (side - h + 1))
            left = int(uniform(key, image, counter + 3) * (side - w + 1))
            return top, top + h, left, left + w
    return 0, 0, 0, 0


@njit(nogil=True)
def noise_stream(key: int, image: int) -> np.uint64:
    """Return where the noise of an erased rectangle begins: adding GOLDEN and mixing gives the next bits."""
    return bits(key, image, ERASE + 1)


@njit(nogil=True)
def operation(key: int, image: int, turn: int) -> tuple[int, bool]:
    """Return (number, negative) of the operation of RandAugment that an image meets in a turn.

    All are equally likely in every turn; negative, of probability 1/2, is for those whose level has a sign
    (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719, section 3).
    """
    counter = OPERATION + 2 * turn
    return int(uniform(key, image, counter) * NUM_OPERATIONS), uniform(key, image, counter + 1) < 0.5


@njit(nogil=True)
def centre_window(height: int, width: int, ratio: float) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the centred square with `ratio` of the shorter side."""
    side = max(1, int(ratio * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side
