"""CPUs of one process among several, under what srun, torchrun and nobody say of the node."""

from __future__ import annotations

import pytest

from kapdist.run.cpus import cpus_of_one

OWN_12 = ",".join(hex(0xFFF << 12 * task) for task in range(8))
SOCKETS = ",".join(["0xffffffffffff"] * 4 + ["0xffffffffffff000000000000"] * 4)


def step(tasks: str = "8", on_node: int = 96, **more: object) -> dict[str, str]:
    """The variables of a step's second task as Slurm 22.05 sets them."""
    values = {"STEP_ID": 0, "STEP_TASKS_PER_NODE": tasks, "CPUS_ON_NODE": on_node, "LOCALID": 1, "NODEID": 0} | more
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


def bound(kind: str, listed: str, **more: object) -> dict[str, str]:
    return step(CPU_BIND_TYPE=kind, CPU_BIND_LIST=listed, **more)


@pytest.mark.parametrize(
    ("mask", "environ", "processes", "expected"),
    [
        # Nobody says anything; torchrun on a machine of its own, and in a batch script.
        (96, {}, 1, 96),
        (96, {}, 8, 12),
        (4, {}, 8, 1),
        (96, {"SLURM_CPUS_ON_NODE": "96", "SLURM_CPUS_PER_TASK": "12", "SLURM_TASKS_PER_NODE": "8"}, 8, 12),
        # srun binds each task: its mask is its own.
        (12, bound("mask_cpu:", OWN_12, CPUS_PER_TASK=12), 8, 12),
        (12, bound("mask_cpu:", OWN_12), 1, 12),
        (1, bound("map_cpu:", "0,1,2,3,4,5,6,7"), 8, 1),
        (1, bound("rank", "", on_node=8), 8, 1),
        (12, bound("mask_cpu:", OWN_12.replace("0xfff,", "0xfff*1,", 1)), 8, 12),
        # Whole cores of two threads where Slurm counts cores, or where a task asked for one thread.
        (24, bound("mask_cpu:", OWN_12, on_node=96, CPUS_PER_TASK=12), 8, 24),
        (2, bound("mask_cpu:", "0x3,0xc", tasks="2", on_node=4, CPUS_PER_TASK=1), 2, 2),
        # Bound to what tasks share: two sockets, two memory domains, one CPU for all.
        (48, bound("mask_cpu:", SOCKETS), 8, 12),
        (48, bound("mask_ldom:", "0x1,0x2"), 8, 12),
        (1, bound("mask_cpu:", "0x1", tasks="2", on_node=1), 2, 1),
        # torchrun in the one task of each node, bound to all that the node gives, or not bound.
        (96, bound("mask_cpu:", "0x" + "f" * 24, tasks="1(x4)", LOCALID=0, CPUS_PER_TASK=96), 8, 12),
        (96, step(tasks="1(x4)", CPUS_PER_TASK=96, CPU_BIND_TYPE="none"), 8, 12),
        (96, step(tasks="1", CPUS_PER_TASK=16), 8, 2),
        # Tasks that are not bound: the mask is the node's, or that of the job's control group.
        (128, step(CPU_BIND_TYPE="none", CPUS_PER_TASK=12), 8, 12),
        (128, step(CPU_BIND_TYPE="none"), 8, 16),
        (96, step(CPUS_PER_TASK=12), 8, 12),
        (96, step(), 1, 96),
        (96, step(CPUS_PER_TASK=12), 1, 12),
        # Bound by masks that are not listed: eight of them make up what the step has here.
        (12, step(CPUS_PER_TASK=12), 8, 12),
        (12, step(CPU_BIND_TYPE="mask_cpu:", CPU_BIND_LIST="what"), 8, 12),
        # The last node of a step has fewer tasks than the others.
        (48, step(tasks="8(x3),2", NODEID=3, CPU_BIND_TYPE="none", on_node=48), 2, 24),
        (24, step(tasks="8(x3),2", NODEID=3, on_node=48), 2, 24),
    ],
)
def test_a_mask_of_its_own_is_not_divided_and_one_that_is_shared_is(
    mask: int, environ: dict[str, str], processes: int, expected: int
) -> None:
    assert cpus_of_one(mask, environ, processes) == expected
