"""Clouds by the diamond-square method (Fournier, Fussell & Carpenter 1982, CACM 25:371), on a torus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Heights = NDArray[np.float64]

FIRST_AMPLITUDE = 100.0


def plasma(height: int, width: int, decay: float, random: np.random.Generator) -> Heights:
    """Return the corner, (height, width), of a square cloud of the next power of two, which spans [0, 1].

    Args:
        decay: by how much the random part shrinks from one scale to the next; less is rougher.
    """
    side = 1 << (max(height, width, 2) - 1).bit_length()
    field = np.zeros((side, side))
    amplitude, step = FIRST_AMPLITUDE, side
    while step >= 2:
        refine(field, step, amplitude, random)
        step, amplitude = step // 2, amplitude / decay
    field -= field.min()
    return (field / field.max())[:height, :width]


def refine(field: Heights, step: int, amplitude: float, random: np.random.Generator) -> None:
    """Fill the points halfway between those of a grid: squares' centres first, then the middles of edges."""
    half = step // 2

    def displaced(four: Heights) -> Heights:
        return four / 4 + amplitude * random.uniform(-amplitude, amplitude, four.shape)

    corners = field[::step, ::step]
    columns = corners + np.roll(corners, -1, axis=0)
    field[half::step, half::step] = displaced(columns + np.roll(columns, -1, axis=1))
    centres = field[half::step, half::step]
    across = corners + np.roll(corners, -1, axis=1)
    field[::step, half::step] = displaced(centres + np.roll(centres, 1, axis=0) + across)
    along = corners + np.roll(corners, -1, axis=0)
    field[half::step, ::step] = displaced(centres + np.roll(centres, 1, axis=1) + along)
