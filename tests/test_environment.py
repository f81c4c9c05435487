"""Which version this is, and what a job may use, by Slurm's words and by the cgroups around it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import kapdist
from kapdist import environment
from kapdist.environment import cgroup_cpus, cgroup_memory, git_state, slurm_memory, version_in_words

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


def test_the_time_that_cgroups_grant(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path) == []
    write(tmp_path / "proc/self/cgroup", "0::/slurm/job_7/step_0")
    slurm = tmp_path / "sys/fs/cgroup/slurm"
    write(slurm / "job_7/step_0/cpu.max", "max 100000")
    write(slurm / "job_7/cpu.max", "150000 100000")
    write(slurm / "job_8/cpu.max", "50000 100000")
    assert cgroup_cpus(tmp_path) == [1.5]


def test_the_time_that_cgroups_of_the_first_version_grant(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "9:cpu,cpuacct:/slurm/job_7\n4:memory:/other")
    cpu = tmp_path / "sys/fs/cgroup/cpu"
    for folder, quota in ((cpu, -1), (cpu / "slurm/job_7", 400000), (cpu / "other", 100000)):
        write(folder / "cpu.cfs_quota_us", quota)
        write(folder / "cpu.cfs_period_us", 100000)
    assert cgroup_cpus(tmp_path) == [4.0]


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


def test_one_version_and_the_commit_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    written = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert written
    assert kapdist.__version__ == written[1]
    snapshot = tmp_path / "GIT.json"
    monkeypatch.setattr(environment, "SNAPSHOT", snapshot)
    for diff, words in (("", ""), ("+a line", " and changes")):
        write(snapshot, f'{{"commit": "0123456789abcdef", "diff": "{diff}"}}')
        assert version_in_words() == f"kapdist {kapdist.__version__} (commit 0123456789ab{words})"


def test_a_checkout_of_something_else_around_it_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where it is installed in an environment that lies in the user's own project."""
    installed = tmp_path / ".venv" / "environment.py"
    write(installed, "")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(environment, "SNAPSHOT", tmp_path / "absent")
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert git_state() is None
    assert version_in_words() == f"kapdist {kapdist.__version__}"
    subprocess.run([*git, "add", "-f", str(installed)], check=True)
    assert git_state() is not None


def test_files_that_are_not_in_utf_8_may_be_changed_in_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their difference is of bytes that are no text, and a run began with a traceback."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    write(tmp_path / "environment.py", "")
    (tmp_path / "notes.txt").write_bytes(b"caf\xe9\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "notes.txt").write_bytes(b"caf\xe9 noir\n")
    monkeypatch.setattr(environment, "SNAPSHOT", tmp_path / "absent")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    state = git_state()
    assert state is not None
    assert "+caf\N{REPLACEMENT CHARACTER} noir\n" in state["diff"]
