"""What a task of a real srun takes for its own CPUs, where Slurm binds tasks and where it does not."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

# A mask of 12 CPUs, whatever this machine has, and the one that the task really has.
SHOW = (
    "import os; from kapdist.run.cpus import cpus_of_one as c; from kapdist.environment import usable_cpus as u\n"
)
SHOW += "print(c(12, os.environ, 2), u(2), len(os.sched_getaffinity(0)), sep=',')"


pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two tasks take two CPUs")


def shown(slurm: Any, *words: str) -> list[list[int]]:
    lines = slurm.run(["srun", "-N1", "-n2", *words, sys.executable, "-c", SHOW]).stdout.splitlines()
    return [[int(word) for word in line.split(",")] for line in lines]


def test_a_bound_task_has_its_mask_to_itself(binding_slurm) -> None:
    each = len(os.sched_getaffinity(0)) // 2
    assert shown(binding_slurm, f"--cpus-per-task={each}") == [[12, each, each]] * 2


def test_tasks_that_are_not_bound_share(binding_slurm) -> None:
    cpus = len(os.sched_getaffinity(0))
    assert shown(binding_slurm, "--cpu-bind=none") == [[6, cpus // 2, cpus]] * 2
    assert shown(binding_slurm, "--cpu-bind=none", "--cpus-per-task=1") == [[1, 1, cpus]] * 2
    assert shown(binding_slurm, "--cpu-bind=mask_cpu:0x3,0x3", "--cpus-per-task=1") == [[6, 1, 2]] * 2
