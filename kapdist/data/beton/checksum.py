"""XXH64, seed 0, of stored bytes: fast enough to check every image when it is first read.

The algorithm as specified in github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; `xxhsum -H64` prints the
same. It finds flipped bits, not forgery: that is what the sha256 of the whole file is for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba import types as numba_types

from kapdist.jit import compiled

types: Any = numba_types  # numba's own annotations do not know that a type can be called

P1 = np.uint64(0x9E3779B185EBCA87)
P2 = np.uint64(0xC2B2AE3D27D4EB4F)
P3 = np.uint64(0x165667B19E3779F9)
P4 = np.uint64(0x85EBCA77C2B2AE63)
P5 = np.uint64(0x27D4EB2F165667C5)


@njit(nogil=True)
def rotate(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit(nogil=True)
def little_endian(data: np.ndarray, at: int, count: int) -> np.uint64:
    # Byte by byte, since stored images begin anywhere; where no index can be negative, it becomes one load.
    value = np.uint64(0)
    for index in range(count):
        value |= np.uint64(data[np.uintp(at) + np.uintp(index)]) << np.uint64(8 * index)
    return value


@njit(nogil=True)
def lane(accumulator: np.uint64, word: np.uint64) -> np.uint64:
    return rotate(accumulator + word * P2, 31) * P1


@njit(nogil=True)
def stripes(data: np.ndarray, start: int, count: int) -> np.uint64:
    """Return the state after `count` stripes of 32 bytes, four independent lanes."""
    a, b, c, d = P1 + P2, P2, np.uint64(0), np.uint64(0) - P1
    for stripe in range(count):
        at = start + 32 * stripe
        a = lane(a, little_endian(data, at, 8))
        b = lane(b, little_endian(data, at + 8, 8))
        c = lane(c, little_endian(data, at + 16, 8))
        d = lane(d, little_endian(data, at + 24, 8))
    value = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18)
    for accumulator in (a, b, c, d):
        value = (value ^ lane(np.uint64(0), accumulator)) * P1 + P4
    return value


@njit(nogil=True)
def xxh64(data: np.ndarray, start: int, size: int) -> np.uint64:
    """Return the XXH64 of data[start : start + size], data uint8."""
    end = start + size
    value = stripes(data, start, size // 32) if size >= 32 else P5
    value += np.uint64(size)
    at = start + size // 32 * 32
    while at + 8 <= end:
        value = rotate(value ^ lane(np.uint64(0), little_endian(data, at, 8)), 27) * P1 + P4
        at += 8
    if at + 4 <= end:
        value = rotate(value ^ (little_endian(data, at, 4) * P1), 23) * P2 + P3
        at += 4
    while at < end:
        value = rotate(value ^ (np.uint64(data[at]) * P5), 11) * P1
        at += 1
    value = (value ^ (value >> np.uint64(33))) * P2
    value = (value ^ (value >> np.uint64(29))) * P3
    return value ^ (value >> np.uint64(32))


def checksum_each(data, starts, sizes, out):  # type: ignore[no-untyped-def]
    for index in range(len(starts)):
        out[index] = xxh64(data, starts[index], sizes[index])


@functools.cache
def compiled_checksum() -> Callable[..., None]:
    numbers = types.int64[::1]
    return compiled(
        checksum_each,
        types.void(types.Array(types.uint8, 1, "C", readonly=True), numbers, numbers, types.uint64[::1]),
    )


def checksums(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the XXH64 of data[start : start + size] for every pair, uint64; data is uint8 and read-only."""
    out = np.empty(len(starts), np.uint64)
    compiled_checksum()(data, np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(sizes, np.int64), out)
    return out
