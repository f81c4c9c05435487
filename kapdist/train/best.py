"""best.safetensors: the weights of the best evaluation, also where a full disk takes them later."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kapdist.run.files import write_atomic
from kapdist.run.paths import RunDir
from kapdist.train.later import Later


class BestWeights:
    """Rank 0's writer of the best weights; what finds no room is kept in memory and goes into checkpoints."""

    def __init__(self, run: RunDir) -> None:
        self.path = run.best_weights
        self.later = Later(self.path.name, partial(write_atomic, self.path), keep=1)

    def write(self, content: bytes) -> None:
        """Put the bytes of a file in the place of the last one, now or when there is room."""
        self.later.add(content)

    def state(self) -> Tensor | None:
        """Return the bytes that still wait; None where what is on the disk is the best."""
        self.later.try_again()
        waiting = self.later.waiting
        return torch.frombuffer(bytearray(waiting[0]), dtype=torch.uint8) if waiting else None

    def load_state(self, state: Tensor | None) -> None:
        if state is not None:
            self.write(state.numpy().tobytes())

    def finish(self) -> None:
        """Write what waits.

        Raises:
            OSError: there is still no room.
        """
        self.later.finish()
