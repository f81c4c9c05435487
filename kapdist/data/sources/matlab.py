"""Reading a MATLAB level 5 file: what the ImageNet devkit keeps its synsets in, and not more of the format.

The format: "MAT-File Format", MathWorks, chapter 1. A file is a header of 128 bytes and elements; an element is a
tag (type, bytes) and data padded to 8 bytes, or both within 8 bytes. Nothing in it can be executed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kapdist.errors import InputError

HEADER = 128
LARGEST_UNPACKED = 1 << 28  # bytes; ImageNet's is 2 MB
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, CHAR = 1, 2, 4
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}


def read_matlab(content: bytes, place: object) -> dict[str, Any]:
    """Return {name: value} of a file's variables.

    A struct array is a list of dicts, a cell array a list, text a str, anything else a flat array.

    Raises:
        InputError: another format, or damaged.
    """
    if content[124:128] != b"\x00\x01IM":
        raise InputError(place, "a MATLAB file of level 5, little-endian", f"a file of {len(content)} bytes")
    try:
        return dict(matrix(data) for kind, data in elements(content[HEADER:]) if kind == MATRIX)
    except Exception as error:  # damaged bytes lead nearly anywhere
        raise InputError(place, "a whole MATLAB file", f"a damaged one ({error!r})") from error


def elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of the elements, unpacked."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, at)
        if kind >> 16:  # a short one: its bytes and type in one word, then up to 4 bytes of data
            yield kind & 0xFFFF, content[at + 4 : at + 4 + (kind >> 16)]
            at += 8
            continue
        data = content[at + 8 : at + 8 + size]
        if len(data) < size:
            raise ValueError(f"an element of {size} bytes where {len(data)} are left")
        if kind == COMPRESSED:
            yield from elements(zlib.decompressobj().decompress(data, LARGEST_UNPACKED))
        else:
            yield kind, data
        # Compressed elements alone are not padded.
        at += 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)


def matrix(content: bytes) -> tuple[str, Any]:
    """Return (name, value) of a matrix element."""
    if not content:
        return "", np.empty(0)
    parts = elements(content)
    flags, shape, name = next(parts)[1], numbers(*next(parts)), next(parts)[1].decode("ascii")
    kind, count = flags[0], int(np.prod(shape))
    if kind == STRUCT:
        return name, structs(parts, count)
    if kind == CELL:
        return name, [matrix(next(parts)[1])[1] for _ in range(count)]
    if kind == CHAR:
        code, text = next(parts, (1, b""))
        return name, text.decode(TEXTS[code])
    return name, numbers(*next(parts))


def structs(parts: Iterator[tuple[int, bytes]], count: int) -> list[dict[str, Any]]:
    length = int(numbers(*next(parts))[0])
    names = next(parts)[1]
    keys = [names[at : at + length].split(b"\0")[0].decode("ascii") for at in range(0, len(names), length)]
    return [{key: matrix(next(parts)[1])[1] for key in keys} for _ in range(count)]


def numbers(kind: int, content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.dtype(NUMBERS[kind]).newbyteorder("<"))
