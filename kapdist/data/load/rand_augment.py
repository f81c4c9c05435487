"""RandAugment: a few operations in turn, drawn per image (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719).

Which operations there are, and what a magnitude means to each, is torchvision's (transforms.RandAugment).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit

from kapdist.data.load.augment import operation
from kapdist.data.load.operations import (
    POSTERIZE,
    ROTATE,
    SHEAR_X,
    SHEAR_Y,
    SOLARIZE,
    TRANSLATE_X,
    TRANSLATE_Y,
    operate,
)
from kapdist.data.load.pixels import array_type, types
from kapdist.jit import compiled

MOST = 30  # the largest magnitude


@njit(nogil=True)
def level_of(number: int, magnitude: int, negative: bool, side: int) -> float:
    """Return what an operation is given at a magnitude from 0 to 30, on images of side x side pixels."""
    sign = -1 if negative else 1
    if number in (SHEAR_X, SHEAR_Y):
        return sign * 0.3 * magnitude / MOST
    if number in (TRANSLATE_X, TRANSLATE_Y):
        return float(sign * ((150 * side * magnitude) // (331 * MOST)))  # whole pixels
    if number == ROTATE:
        return float(sign * magnitude)  # 30 degrees are the most
    if number == POSTERIZE:
        return float(8 - int(4 * magnitude / MOST + 0.5))
    if number == SOLARIZE:
        return 255 - 255 * magnitude / MOST
    return 1 + sign * 0.9 * magnitude / MOST  # the factor of a blend; the others take nothing


def rand_augment_part(images, out, key, num_operations, magnitude):  # type: ignore[no-untyped-def]
    """Apply to each image in out (batch, side, side, 3) the operations that its draws name, in place."""
    side = out.shape[1]
    before, table = np.empty((side, side, 3), np.uint8), np.empty((3, 256), np.uint8)
    for position in range(len(images)):
        for turn in range(num_operations):
            number, negative = operation(key, images[position], turn)
            operate(number, level_of(number, magnitude, negative, side), out[position], before, table)


SIGNATURE = types.void(
    array_type(types.int64, 1), array_type(types.uint8, 4), types.int64, types.int64, types.int64
)


@functools.cache
def compiled_rand_augment() -> Callable[..., None]:
    """Return rand_augment_part in machine code, cached on disk."""
    return compiled(rand_augment_part, SIGNATURE)


def operate_part(codes, out, magnitude):  # type: ignore[no-untyped-def]
    """Apply to each image in out (batch, side, side, 3) the operation of its code, in place.

    Args:
        codes: (batch,) int64, 2 * number + negative.
    """
    side = out.shape[1]
    before, table = np.empty((side, side, 3), np.uint8), np.empty((3, 256), np.uint8)
    for position in range(len(codes)):
        number = codes[position] // 2
        level = level_of(number, magnitude, codes[position] % 2 == 1, side)
        operate(number, level, out[position], before, table)


@functools.cache
def compiled_operate() -> Callable[..., None]:
    """Return operate_part in machine code, cached on disk."""
    return compiled(operate_part, types.void(array_type(types.int64, 1), array_type(types.uint8, 4), types.int64))
