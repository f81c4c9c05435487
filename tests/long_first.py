"""The order of the tests on several workers: the long ones first, handed out singly, those of Slurm by one worker.

pytest-xdist gives each worker a run of consecutive tests, a twelfth of all to begin with. It keeps the runs for
what comes after the long ones, because tests of one file share what their fixtures make. The tests of Slurm mostly
wait: one worker goes through them while others keep the cores at work, and all others together last longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

SLURM = Path(__file__).parent / "slurm"
LONGEST = "test_slurm_training.py", "test_slurm_attack.py", "test_slurm_words.py", "test_quickstart.py"
SINGLY = 60  # about as many as there are of Slurm and marked as slow
MOST = 40  # of others at once, so that no worker is left with many when the others are through


def sort(items: list[pytest.Item]) -> None:
    items.sort(key=place)


def place(item: pytest.Item) -> tuple[int, bool, bool]:
    name, slow = item.path.name, item.get_closest_marker("slow") is not None
    first = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return first, not item.path.is_relative_to(SLURM), not slow


class LongFirst(LoadScheduling):
    """Hands out the first tests one at a time, and the others in runs; those of Slurm to the first worker."""

    def _send_tests(self, node: WorkerController, num: int) -> None:
        assert self.collection is not None
        of_slurm = [test for test in self.pending if self.collection[test].startswith(f"tests/{SLURM.name}/")]
        others = sorted(set(self.pending).difference(of_slurm))
        # Whoever has none of its own takes the others'. A worker that has no two would have to end with its one.
        in_turn = [*of_slurm, *others] if node is self.nodes[0] else [*others, *of_slurm]
        alone = bool(in_turn) and in_turn[0] < SINGLY
        chosen = in_turn[: max(1, 2 - len(self.node2pending[node])) if alone else min(num, MOST)]
        if chosen:
            self.pending[:] = sorted(set(self.pending).difference(chosen))
            self.node2pending[node].extend(chosen)
            node.send_runtest_some(chosen)
