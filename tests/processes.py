"""Processes in tests: ranks of one job, with a time limit, and none left behind."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import select
import shutil
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
from warm_python import ask

import kapdist
from kapdist.errors import RESUME

ROOT = Path(kapdist.__file__).parents[1]
WARM_START = Path(__file__).with_name("warm_start.py")
WARM_PYTHON = Path(__file__).with_name("warm_python.py")
SERVED = "KAPDIST_TESTS_WARM_START"  # the socket of a server that all workers of pytest-xdist share
SERVERS: list[tuple[subprocess.Popen[bytes], socket.socket]] = []  # with its lifeline


AFTER_A_FAILURE_SECONDS = 15.0  # for the others to say that they fail too, on a machine that is busy


class Finished(NamedTuple):
    """How a process ended: its exit code and all that it printed."""

    code: int
    output: str


class WarmProcess:
    """A process that tests/warm_start.py has forked: what these tests use of subprocess.Popen."""

    def __init__(self, words: Sequence[str], cwd: Path, environment: dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        self.port: socket.socket | None = None
        place, written = str(warm_start()), self.output.fileno()
        with open(os.devnull) as nothing:
            files = nothing.fileno(), written, written
            self.control = ask(place, str(ROOT), words, str(cwd), environment, files)
        self.pid = int(self.control.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.control], [], [], 0)[0]:
            self.returncode = int(self.control.recv(100))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.control], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now, and whoever forked it knows
                os.kill(self.pid, number)


@functools.cache
def warm_start() -> Path:
    """Return the socket of the process that forks the others, once it does."""
    place = Path(os.environ.get(SERVED) or serve_warm_starts())
    deadline = time.monotonic() + 300
    while not place.exists():
        assert all(server.poll() is None for server, _ in SERVERS)
        assert time.monotonic() < deadline, "no warm start"
        time.sleep(0.05)
    return place


def serve_warm_starts() -> Path:
    """Start the process that forks the others; return where its socket will be. It ends with this one."""
    place = Path(tempfile.mkdtemp(prefix="kapdist-warm-")) / "socket"
    atexit.register(shutil.rmtree, place.parent, ignore_errors=True)
    python = write_warm_python(place)
    ours, theirs = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, str(WARM_START), str(place), str(theirs.fileno()), str(python)],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # no threads before a fork
        start_new_session=True,
    )
    theirs.close()
    SERVERS.append((server, ours))
    return place


def write_warm_python(place: Path) -> Path:
    """Write the `python` of a warm start, and beside it our commands as they stand, but for their python."""
    python = place.with_name("python")
    ending = f"\n\nmain({str(place)!r}, {str(ROOT)!r})\n"
    code = WARM_PYTHON.read_text().replace("from __future__ import annotations\n", "")  # it would have to be first
    python.write_text(f"{first_line(sys.executable, '-IS')}{code}{ending}")
    for name in ("kapdist", "torchrun"):
        _, *lines = (Path(sys.executable).parent / name).read_text().splitlines(keepends=True)
        place.with_name(name).write_text("".join([first_line(python), *lines]))
    for name in ("python", "kapdist", "torchrun"):
        place.with_name(name).chmod(0o755)
    return python


def first_line(python: Path | str, options: str = "") -> str:
    """Return how a script says what runs it; where the path has spaces a shell is asked to, as pip does it."""
    if " " not in str(python):
        return f"#!{python} {options}".rstrip() + "\n"
    quotes = 3 * "'"
    return f'#!/bin/sh\n{quotes}exec\' "{python}" {options} "$0" "$@"\n\' {quotes}\n'


def warm_python() -> Path:
    """Return a `python` whose processes start warm; `kapdist` and `torchrun` lie beside it."""
    return warm_start().with_name("python")


def warm_program(folder: Path, code: str) -> list[str]:
    """Return the words that run code, from a file, as `python -c CODE` does."""
    path = folder / "program.py"
    path.write_text(code)
    return [str(warm_python()), str(path)]


class ColdProcess(subprocess.Popen[bytes]):
    """A process as a user starts it."""

    def __init__(self, words: Sequence[str], cwd: Path, environment: dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        self.port: socket.socket | None = None
        super().__init__(
            [sys.executable, *words],
            cwd=cwd,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


Process = WarmProcess | ColdProcess


def start_ranks(words: Sequence[str], world_size: int, cwd: Path, cold: bool = False) -> list[Process]:
    """Start `python WORDS` as the ranks of one job, as torchrun would; each in a process group of its own.

    They find torch and kapdist imported (tests/warm_start.py) unless they are to start cold, as a user starts them.
    """
    port = held_port()
    processes: list[Process] = []
    for rank in range(world_size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port.getsockname()[1],
        }
        environment = os.environ | {key: str(value) for key, value in variables.items()}
        processes.append((ColdProcess if cold else WarmProcess)(words, cwd, environment))
        processes[-1].port = port
    return processes


def held_port() -> socket.socket:
    """Return a socket whose port the system gives to nobody else while it is open, though ranks may listen on it.

    A port that was only looked up is taken now and then, in the seconds until rank 0 is there, by one of the many
    processes beside: then rank 0 says that it is not free. Who listens allows the address to be used again, too.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def end_ranks(processes: Sequence[Process], timeout: float) -> list[Finished]:
    """Wait for all; when one fails the others have some seconds more, and no process is left behind.

    Who was asked to stop and has saved did not fail, nor do the others that are about to.
    """
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if any(process.poll() not in (None, 0, RESUME) for process in processes):
            deadline = min(deadline, time.monotonic() + AFTER_A_FAILURE_SECONDS)
        time.sleep(0.02)
    late = [rank for rank, process in enumerate(processes) if process.poll() is None]
    kill_ranks(processes)
    ended = [Finished(process.wait(), read_output(process)) for process in processes]
    if late and all(end.code in (0, RESUME, -signal.SIGKILL) for end in ended):
        pytest.fail(f"ranks {late} took longer than {timeout} s:\n" + "\n".join(end.output for end in ended))
    return ended


def kill_ranks(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # as above
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill_ranks_after(path: Path, processes: Sequence[Process]) -> None:
    """Kill at a random instant after a file is there, or after two minutes; none must be at its end by then."""
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.1))  # a fast machine is at its end half a second later
    kill_ranks(processes)


def read_output(process: Process) -> str:
    process.output.seek(0)
    return process.output.read().decode(errors="replace")


def ranks_of_job(slurm_conf: str, job: str, rank: int = 0) -> list[int]:
    """Return the processes on this machine that are a rank of a sandbox's job, found by their variables."""
    wanted = {f"SLURM_CONF={slurm_conf}", f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
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
