"""The order of the tests on several workers: the long ones first, handed out singly.

pytest-xdist gives each worker a run of consecutive tests, a twelfth of all to begin with: the tests of Slurm, which
mostly wait, would stand in one queue and last longer than all others together on the other workers. It keeps the
runs for what comes after them, because tests of one file share what their fixtures make.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

SLURM = Path(__file__).parent / "slurm"
LONGEST = "test_slurm_training.py", "test_slurm_attack.py", "test_slurm_words.py", "test_quickstart.py"
SINGLY = 40  # about as many as there are of Slurm and marked as slow
MOST = 40  # of others at once, so that no worker is left with many when the others are through


def sort(items: list[pytest.Item]) -> None:
    items.sort(key=place)


def place(item: pytest.Item) -> tuple[int, bool, bool]:
    name, slow = item.path.name, item.get_closest_marker("slow") is not None
    first = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return first, not item.path.is_relative_to(SLURM), not slow


class LongFirst(LoadScheduling):
    """Hands out the first tests one at a time, whoever is free, and the others in runs."""

    def _send_tests(self, node: WorkerController, num: int) -> None:
        alone = bool(self.pending) and self.pending[0] < SINGLY
        # A worker that has no two would have to end with its one.
        super()._send_tests(node, max(1, 2 - len(self.node2pending[node])) if alone else min(num, MOST))
