"""The memory that a job may use, by Slurm's words and by the cgroups around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kapdist.environment import cgroup_memory, slurm_memory

MIB = 2**20


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_a_limit_of_any_cgroup_around_counts(tmp_path: Path) -> None:
    """As under Slurm: the job's cgroup has the limit, the task's says max, the root has no file."""
    write(tmp_path / "proc/self/cgroup", "0::/slurm/job_7/step_0/task_1")
    slurm = tmp_path / "sys/fs/cgroup/slurm"
    write(slurm / "job_7/step_0/task_1/memory.max", "max")
    write(slurm / "job_7/memory.max", 3 * MIB)
    write(slurm / "memory.max", 5 * MIB)
    write(slurm / "job_8/memory.max", MIB)
    assert sorted(cgroup_memory(tmp_path)) == [3 * MIB, 5 * MIB]


def test_cgroups_of_the_first_version(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "9:cpu,cpuacct:/elsewhere\n4:memory:/slurm/job_7")
    memory = tmp_path / "sys/fs/cgroup/memory"
    write(memory / "slurm/job_7/memory.limit_in_bytes", 2 * MIB)
    write(memory / "elsewhere/memory.limit_in_bytes", MIB)
    write(memory / "memory.limit_in_bytes", 2**63 - 4096)
    assert sorted(cgroup_memory(tmp_path)) == [2 * MIB, 2**63 - 4096]


def test_a_path_that_leads_out_of_the_container_or_no_cgroup_at_all(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path) == []
    write(tmp_path / "proc/self/cgroup", "0::/../../other")
    write(tmp_path / "sys/fs/cgroup/memory.max", 4 * MIB)
    assert set(cgroup_memory(tmp_path)) == {4 * MIB}


@pytest.mark.parametrize(
    ("environ", "megabytes"),
    [
        ({}, []),
        ({"SLURM_MEM_PER_NODE": "1000"}, [1000]),
        ({"SLURM_MEM_PER_NODE": "0"}, []),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "6"}, [3000]),
        ({"SLURM_MEM_PER_CPU": "500"}, []),
        ({"SLURM_MEM_PER_GPU": "2000", "SLURM_GPUS_ON_NODE": "4"}, [8000]),
    ],
)
def test_memory_by_slurm_s_words(environ: dict[str, str], megabytes: list[int]) -> None:
    assert slurm_memory(environ) == [value * MIB for value in megabytes]
