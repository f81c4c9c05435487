"""Processes in tests: ranks of one job, with a time limit, and none left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Finished(NamedTuple):
    """How a process ended: its exit code and all that it printed."""

    code: int
    output: str


def start_ranks(
    words: Sequence[str], world_size: int, cwd: Path, environment: dict[str, str] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start `python WORDS` as the ranks of one job, as torchrun would; each in a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        env = os.environ | {key: str(value) for key, value in variables.items()} | (environment or {})
        output = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process object)
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.output = output  # type: ignore[attr-defined]
        processes.append(process)
    return processes


def end_ranks(processes: Sequence[subprocess.Popen[bytes]], timeout: float) -> list[Finished]:
    """Wait for all; when one fails the others have five seconds more, and no process is left behind."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if any(process.poll() not in (None, 0) for process in processes):
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.02)
    late = [rank for rank, process in enumerate(processes) if process.poll() is None]
    kill_ranks(processes)
    ended = [Finished(process.wait(), read_output(process)) for process in processes]
    if late and all(end.code in (0, -signal.SIGKILL) for end in ended):
        pytest.fail(f"ranks {late} took longer than {timeout} s:\n" + "\n".join(end.output for end in ended))
    return ended


def kill_ranks(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_output(process: subprocess.Popen[bytes]) -> str:
    process.output.seek(0)  # type: ignore[attr-defined]
    return process.output.read().decode(errors="replace")  # type: ignore[attr-defined]


def ranks_of_job(job: str, rank: int = 0) -> list[int]:
    """Return the processes on this machine that are a rank of a Slurm job, found by their variables."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # gone, or not ours
        if wanted <= set(variables) and "submitit.core._submit" in command and "srun" not in command:
            found.append(int(path.name))
    return found
