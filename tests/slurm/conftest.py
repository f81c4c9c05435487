"""A sandbox (tools/slurm_sandbox.py) for each worker that runs tests under tests/slurm."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "slurm_sandbox.py"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


def run_tool(*words: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run tools/slurm_sandbox.py; standard error is part of standard output."""
    command = [sys.executable, str(TOOL), *map(str, words)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )


class Sandbox:
    """A Slurm that is up: commands inside it, jobs' states, and what may befall its nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = json.loads(run_tool("status", "--json", "--dir", directory).stdout)
        self.prefix: list[str] = self.facts["prefix"]
        foreign = ("SLURM", "SBATCH", "SRUN")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment = own | {"SLURM_CONF": self.facts["slurm_conf"]}

    def run(
        self, words: Sequence[object], timeout: float = 180, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the sandbox; unless told otherwise its failure fails the test, with its words."""
        command = [*self.prefix, *map(str, words)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd or self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def submit(self, *words: object, cwd: Path | None = None) -> str:
        """Submit a job with `sbatch WORDS`; return its id."""
        return self.run(["sbatch", "--parsable", *words], cwd=cwd).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name; empty when Slurm has forgotten the job."""
        words = self.run(["scontrol", "show", "job", "-o", job], check=False).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, job: str, states: Collection[str], timeout: float = 180) -> str:
        """Wait until a job is in one of some states (PENDING, RUNNING, COMPLETED, ...); return which."""
        wanted = {states} if isinstance(states, str) else set(states)
        self.wait_until(lambda: self.job(job).get("JobState") in wanted, f"job {job} is {sorted(wanted)}", timeout)
        return self.job(job).get("JobState", "")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                queue = self.run(["squeue", "-o", "%i %P %T %r %N"], check=False).stdout
                pytest.fail(
                    f"waited {timeout} s until {what}\n{queue}{self.run(['sinfo', '-N'], check=False).stdout}"
                )
            time.sleep(0.25)  # each look is a process

    def node_states(self) -> dict[str, str]:
        lines = self.run(["sinfo", "-h", "-N", "-p", "low", "-o", "%N %T"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def cut(self) -> None:
        """Cut the link between the nodes, until `mend`."""
        self._tool("cut")

    def mend(self) -> None:
        self._tool("mend")

    def stop_node(self, node: str = "n2", hard: bool = False) -> None:
        """Kill a node's slurmd; `hard` kills all that runs on the node too."""
        self._tool("stop-node", node, *(["--hard"] if hard else []))

    def start_node(self, node: str = "n2") -> None:
        self._tool("start-node", node)

    def restore(self, timeout: float = 180) -> None:
        """End all jobs, mend the link, start both nodes, wait until these are idle: a clean start for a test."""
        if self.facts["namespaces"]:
            self.mend()
        for node in ("n1", "n2"):
            self.start_node(node)
        self.run(["scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name])
        self.wait_until(lambda: set(self.node_states().values()) == {"idle"}, "both nodes are idle", timeout)

    def _tool(self, *words: object) -> None:
        done = run_tool(*words, "--dir", self.directory)
        assert done.returncode == 0, done.stdout


def why_not() -> str | None:
    """Why no Slurm can be had here, or None."""
    daemons = "/usr/sbin:/sbin:" + os.environ.get("PATH", "")
    if all(shutil.which(name, path=daemons) for name in ("slurmctld", "slurmdbd", "munged", "mariadbd", "ip")):
        return None
    may_install = shutil.which("apt-get") and (os.geteuid() == 0 or can_sudo())
    return None if may_install else "no Slurm on this machine, and no right to install Debian's packages"


def can_sudo() -> bool:
    sudo = shutil.which("sudo")
    return bool(sudo) and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0


@contextlib.contextmanager
def sandbox(*kinds: Sequence[object]) -> Iterator[Sandbox]:
    """Start a sandbox of the first kind, by words of `up`, that this machine allows; it is gone at the end."""
    if reason := why_not():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="kapdist-slurm-"))
    try:
        for words in kinds:
            done = run_tool("up", *words, "--dir", directory, timeout=900)
            if done.returncode == 0:
                break
            warnings.warn(f"no sandbox with {words}: {done.stdout}", stacklevel=1)
        assert done.returncode == 0, done.stdout
        yield Sandbox(directory)
    finally:
        done = run_tool("down", "--dir", directory)
        shutil.rmtree(directory, ignore_errors=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def slurm() -> Iterator[Sandbox]:
    """A two-node Slurm, its nodes in networks of their own where the machine allows it, else at one address."""
    with sandbox(["--namespaces"], []) as up:
        yield up


@pytest.fixture(scope="module")
def binding_slurm() -> Iterator[Sandbox]:
    """One that binds tasks to CPUs, as many as this machine has."""
    with sandbox(["--no-accounting", "--task-plugin", "affinity", "--cpus", len(os.sched_getaffinity(0))]) as up:
        yield up


@pytest.fixture
def sandbox_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tools/slurm_sandbox.py with some words."""
    return run_tool
