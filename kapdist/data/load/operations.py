"""The operations of RandAugment on square uint8 images, in jitted code: each gives the bytes that Pillow's does.

So nearest sampling of 16.16 fixed-point coordinates, black where nothing lands, and blending in float32 that is cut
off, not rounded: Pillow's own arithmetic (Image.transform, ImageEnhance, ImageOps), which torchvision's calls.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kapdist.data.load.resize import U0, U1, U2, U3

OPERATIONS = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(6)
BRIGHTNESS, COLOR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE = range(6, 14)

FIXED = 16  # bits behind the point
RED, GREEN, BLUE, ROUND = 19595, 38470, 7471, 1 << 15  # of 1 << 16: ITU-R 601-2, as Pillow converts to grey


@njit(nogil=True)
def operate(number: int, level: float, image: np.ndarray, before: np.ndarray, table: np.ndarray) -> None:
    """Apply an operation to an image (side, side, 3) uint8, in place.

    Args:
        level: pixels, degrees, slope, factor, bits or threshold: whatever the operation takes.
        before: of the image's shape, to be written over.
        table: (3, 256) uint8, to be written over.
    """
    if number == IDENTITY:
        return
    if number <= ROTATE:
        copy(image.reshape(-1), before.reshape(-1))
        transform(before, matrix(number, level, image.shape[0]), image)
    elif number == COLOR:
        colour(image, np.float32(level))
    elif number == SHARPNESS:
        copy(image.reshape(-1), before.reshape(-1))
        sharpen(before, np.float32(level), image)
    else:
        fill_table(number, level, image, table)
        look_up(table, image)


@njit(nogil=True)
def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy bytes one by one: numba does not make one move of a slice that is assigned."""
    for index in range(len(source)):
        target[index] = source[index]


@njit(nogil=True)
def matrix(number: int, level: float, side: int) -> tuple[float, float, float, float, float, float]:
    """Return (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).

    Shears keep the first row or column where it is; rotations are about the centre, counter-clockwise, in degrees.
    """
    if number == SHEAR_X:
        return 1.0, level, 0.0, 0.0, 1.0, 0.0
    if number == SHEAR_Y:
        return 1.0, 0.0, 0.0, level, 1.0, 0.0
    if number == TRANSLATE_X:
        return 1.0, 0.0, -level, 0.0, 1.0, 0.0
    if number == TRANSLATE_Y:
        return 1.0, 0.0, 0.0, 0.0, 1.0, -level
    cos, sin, centre = math.cos(math.radians(level)), math.sin(math.radians(level)), side / 2
    return cos, -sin, centre * (1 - cos + sin), sin, cos, centre * (1 - cos - sin)


@njit(nogil=True)
def fixed(value: float) -> int:
    return math.floor(value * (1 << FIXED) + 0.5)


@njit(nogil=True)
def transform(
    before: np.ndarray, coefficients: tuple[float, float, float, float, float, float], out: np.ndarray
) -> None:
    """Fill out from the nearest pixels of before, both (side, side, 3); black outside."""
    a, b, c, d, e, f = coefficients
    side = out.shape[0]
    right, down = fixed(a), fixed(d)
    begin_x, begin_y = fixed(c + (a + b) / 2), fixed(f + (d + e) / 2)
    limit, source = np.uintp(side << FIXED), before.reshape(-1)
    line_bytes = np.uintp(3 * side)
    for row in range(side):
        x, y = begin_x + row * fixed(b), begin_y + row * fixed(e)
        target = out[row]
        if right == 1 << FIXED and down == 0:
            move_row(before, x >> FIXED, y >> FIXED, target)
            continue
        for column in range(side):
            if np.uintp(x) < limit and np.uintp(y) < limit:  # negative ones are large as unsigned
                at = np.uintp(y >> FIXED) * line_bytes + U3 * np.uintp(x >> FIXED)
                target[column, U0] = source[at]
                target[column, U1] = source[at + U1]
                target[column, U2] = source[at + U2]
            else:
                target[column, U0] = target[column, U1] = target[column, U2] = 0
            x += right
            y += down


@njit(nogil=True)
def move_row(before: np.ndarray, left: int, row: int, target: np.ndarray) -> None:
    """Fill target (side, 3) with a row of before from the pixel `left` on; black outside."""
    side, line = len(target), target.reshape(-1)
    for index in range(len(line)):
        line[index] = 0
    if 0 <= row < side and abs(left) < side:
        source = before[row].reshape(-1)[3 * max(0, left) : 3 * (side + min(0, left))]
        copy(source, line[3 * max(0, -left) :])


@njit(nogil=True)
def blend(base: np.int32, value: np.int32, factor: np.float32) -> np.uint8:
    """Return base + factor (value - base), cut off to a byte."""
    mixed = np.int32(np.float32(base) + factor * np.float32(value - base))
    return np.uint8(min(max(mixed, np.int32(0)), np.int32(255)))


@njit(nogil=True)
def grey(red: np.int32, green: np.int32, blue: np.int32) -> np.int32:
    """Return the grey of a colour."""
    return np.int32((RED * red + GREEN * green + BLUE * blue + ROUND) >> 16)


@njit(nogil=True)
def colour(image: np.ndarray, factor: np.float32) -> None:
    """Blend every pixel with its grey."""
    pixels = image.reshape(-1, 3)
    for index in range(len(pixels)):
        red, green, blue = np.int32(pixels[index, 0]), np.int32(pixels[index, 1]), np.int32(pixels[index, 2])
        base = grey(red, green, blue)
        pixels[index, 0] = blend(base, red, factor)
        pixels[index, 1] = blend(base, green, factor)
        pixels[index, 2] = blend(base, blue, factor)


@njit(nogil=True)
def sharpen(before: np.ndarray, factor: np.float32, out: np.ndarray) -> None:
    """Blend every pixel but those of the border with a mean of its neighbourhood, in which it counts five times."""
    side = out.shape[0]
    lines, line_bytes = before.reshape(side, -1), 3 * side
    column_sums = np.empty(line_bytes, np.uint32)
    for row in range(1, side - 1):
        above, here, below = lines[row - 1], lines[row], lines[row + 1]
        for at in range(line_bytes):
            column_sums[at] = np.uint32(above[at]) + np.uint32(here[at]) + np.uint32(below[at])
        left, middle, right = column_sums[:-6], column_sums[3:-3], column_sums[6:]
        values, target = here[3:-3], out.reshape(side, -1)[row, 3:-3]
        for at in range(len(values)):
            total = left[at] + middle[at] + right[at] + np.uint32(4) * np.uint32(values[at])
            mean = (total + np.uint32(6)) // np.uint32(13)  # no ties: 13 is odd
            target[at] = blend(np.int32(mean), np.int32(values[at]), factor)


@njit(nogil=True)
def look_up(table: np.ndarray, image: np.ndarray) -> None:
    """Replace every byte by its entry in its channel's table, (3, 256)."""
    pixels = image.reshape(-1, 3)
    for index in range(len(pixels)):
        for channel in range(3):
            pixels[index, channel] = table[channel, pixels[index, channel]]


@njit(nogil=True)
def fill_table(number: int, level: float, image: np.ndarray, table: np.ndarray) -> None:
    """Fill table (3, 256) with what an operation makes of each byte of each channel of an image."""
    if number in (AUTOCONTRAST, EQUALIZE):
        counts = histogram(image)
        for channel in range(3):
            if number == AUTOCONTRAST:
                stretch(counts[channel], table[channel])
            else:
                equalize(counts[channel], table[channel])
        return
    base = mean_grey(image) if number == CONTRAST else 0
    kept_bits = 0xFF << (8 - int(level)) if number == POSTERIZE else 0xFF
    for value in range(256):
        if number == POSTERIZE:
            new = np.uint8(value & kept_bits)
        elif number == SOLARIZE:
            new = np.uint8(value if value < level else 255 - value)
        else:
            new = blend(np.int32(base), np.int32(value), np.float32(level))
        table[:, value] = new


@njit(nogil=True)
def mean_grey(image: np.ndarray) -> int:
    """Return the mean of an image's grey, rounded half up."""
    pixels, total = image.reshape(-1, 3), np.int64(0)
    for index in range(len(pixels)):
        total += grey(np.int32(pixels[index, 0]), np.int32(pixels[index, 1]), np.int32(pixels[index, 2]))
    return int(total / len(pixels) + 0.5)


@njit(nogil=True)
def histogram(image: np.ndarray) -> np.ndarray:
    """Return (3, 256) int64: how often each byte is in each channel."""
    counts, pixels = np.zeros((3, 256), np.int64), image.reshape(-1, 3)
    for index in range(len(pixels)):
        for channel in range(3):
            counts[channel, pixels[index, channel]] += 1
    return counts


@njit(nogil=True)
def stretch(counts: np.ndarray, table: np.ndarray) -> None:
    """Map the darkest byte that there is to 0 and the brightest to 255, linearly; one alone stays as it is."""
    low, high = 0, 255
    while low < 255 and counts[low] == 0:
        low += 1
    while high > 0 and counts[high] == 0:
        high -= 1
    scale = 255.0 / (high - low) if high > low else 1.0
    shift = -low * scale if high > low else 0.0
    for value in range(256):
        table[value] = min(max(int(value * scale + shift), 0), 255)


@njit(nogil=True)
def equalize(counts: np.ndarray, table: np.ndarray) -> None:
    """Map each byte to 255 times the share of darker pixels, in whole steps; one alone stays as it is."""
    last = 255
    while last > 0 and counts[last] == 0:
        last -= 1
    step = (counts.sum() - counts[last]) // 255
    darker = step // 2
    for value in range(256):
        table[value] = min(darker // step, 255) if step else value
        darker += counts[value]
