"""The numbers of `kapdist.kap.normal`, drawn, scaled and added in one pass: loops that numba makes vectors of."""

import math

import numpy as np
from numba import float32, int64, njit, uint64, void

from kapdist.jit import compiled

_LOW = np.uint64(0xFFFFFFFF)


@njit(inline="always")
def _words(words, first, draw, key):  # type: ignore[no-untyped-def]
    """Philox4x32-7 of 128 counters from `first` on, each word the lower half of 64 bits, as products need."""
    for i in range(128):
        a, b, c, d = np.uint64(first + i), draw, draw >> np.uint64(32), np.uint64(0)
        k, m = key & _LOW, key >> np.uint64(32)
        for _ in range(7):
            even, odd = (a & _LOW) * np.uint64(0xD2511F53), (c & _LOW) * np.uint64(0xCD9E8D57)
            a, b = (odd >> np.uint64(32)) ^ b ^ k, odd
            c, d = (even >> np.uint64(32)) ^ d ^ m, even
            k, m = (k + np.uint64(0x9E3779B9)) & _LOW, (m + np.uint64(0xBB67AE85)) & _LOW
        words[0, i], words[1, i], words[2, i], words[3, i] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)


@njit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]
    """The logarithm of x / 2^20, x above 0: Cephes' polynomial."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    m = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    y = np.float32(7.0376836292e-2) * m - np.float32(1.1514610310e-1)
    y = y * m + np.float32(1.1676998740e-1)
    y = y * m - np.float32(1.2420140846e-1)
    y = y * m + np.float32(1.4249322787e-1)
    y = y * m - np.float32(1.6668057665e-1)
    y = y * m + np.float32(2.0000714765e-1)
    y = y * m - np.float32(2.4999993993e-1)
    y = y * m + np.float32(3.3333331174e-1)
    tail = m * m * (m * y - np.float32(0.5))
    return m + tail + np.float32(exponent - np.int32(20)) * np.float32(math.log(2))


@njit(inline="always")
def _pairs(even, odd, words, std):  # type: ignore[no-untyped-def]
    for i in range(128):
        word = words[i]
        radius = std * np.sqrt(np.float32(-2) * _log(np.float32(np.int32(word >> np.uint32(12))) + np.float32(0.5)))
        turn = (np.float32(np.int32(word & np.uint32(1023))) - np.float32(511.5)) * np.float32(math.pi / 2048)
        square = turn * turn
        sine = np.float32(8.3321608736e-3) - square * np.float32(1.9515295891e-4)
        sine = turn + turn * square * (np.float32(-1.6666654611e-1) + square * sine)
        cosine = np.float32(-1.3887316255e-3) + square * np.float32(2.4433157e-5)
        cosine = np.float32(4.1666645683e-2) + square * cosine
        cosine = np.float32(1) + square * (np.float32(-0.5) + square * cosine)
        crosswise = (word >> np.uint32(10)) & np.uint32(1)
        along, across = (sine, cosine) if crosswise else (cosine, sine)
        quadrant = (word >> np.uint32(10)) & np.uint32(3)
        even[i] = -radius * along if ((quadrant + np.uint32(1)) & np.uint32(2)) else radius * along
        odd[i] = -radius * across if quadrant >= np.uint32(2) else radius * across


def _add_normal(z, std, key, draw, first):  # type: ignore[no-untyped-def]
    words = np.empty((4, 128), np.uint32)
    drawn = np.empty((8, 128), np.float32)
    flat = drawn.ravel()
    for start in range(0, z.size, 1024):
        _words(words, first * 128 + start // 8, draw, key)
        for j in range(4):
            _pairs(drawn[2 * j], drawn[2 * j + 1], words[j], std)
        for i in range(min(1024, z.size - start)):
            z[start + i] += flat[i]


add_normal = compiled(_add_normal, void(float32[::1], float32, uint64, uint64, int64))
"""Adds std * n to z in place: (z, std, key, draw, the block of z's first place)."""
