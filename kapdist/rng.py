"""Randomness as a function of identity.

Whatever is random about the data is a pure function of (seed, purpose, epoch, image or chunk): never of rank,
worker, thread, batch size or the number of processes. The identity is hashed, so that (seed 1, epoch 2) and
(seed 2, epoch 1) have nothing in common; adding the two, as samplers often do, makes them equal.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Identity = int | str


def derive_seed(seed: int, *identity: Identity) -> int:
    """Mix a seed with an identity into a new seed of 63 bits (fits torch, NumPy and numba alike)."""
    name = json.dumps([seed, *identity]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *identity: Identity) -> np.random.Generator:
    """Return the NumPy generator that belongs to this identity; the same one on every machine."""
    import numpy as np  # seeds alone are derived also where torch is installed without it

    return np.random.Generator(np.random.Philox(derive_seed(seed, *identity)))


def permutation(length: int, seed: int, *identity: Identity) -> np.ndarray:
    """Return the permutation of range(length), int64, that belongs to this identity."""
    return generator(seed, *identity).permutation(length)
