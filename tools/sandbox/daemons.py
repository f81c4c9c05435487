"""The daemons of a sandbox: munged, MariaDB, slurmdbd, slurmctld and a slurmd per node; each in the foreground of
a session of its own, its words in a log."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.network import on_node
from sandbox.packages import find
from sandbox.processes import alive, holds
from sandbox.settings import NODES, SandboxError, Settings, user_name

LIMIT_SECONDS = 40.0
SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")


def start_daemons(settings: Settings) -> None:
    """Start all and return when both nodes are idle and accounting answers."""
    start_munged(settings)
    if settings.accounting:
        start_mariadb(settings)
        start_slurmdbd(settings)
    start_slurmctld(settings)
    for node in NODES:
        start_slurmd(settings, node)
    wait_until(settings, lambda: node_states(settings) == ["idle", "idle"], "both nodes are idle", "slurmctld")
    if settings.accounting:
        known = lambda: bool(answer(settings, "sacctmgr -nP show cluster"))  # noqa: E731
        wait_until(settings, known, "accounting knows the cluster", "slurmdbd")


def start_munged(settings: Settings) -> None:
    key = settings.directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    words = ["munged", "--foreground", "--force", "--num-threads=2", "--key-file", str(key)]
    files = {
        "socket": "munge.socket",
        "pid-file": "munge.own-pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }
    for option, name in files.items():
        words += [f"--{option}", str(settings.directory / name)]
    start(settings, "munged", words)
    wait_until(settings, (settings.directory / "munge.socket").exists, "munged listens", "munged")


def start_mariadb(settings: Settings) -> None:
    """A database server with no port, no users and, besides what procedures need, no system data: up in 2 s.

    Its temporary tables have a folder of their own: a server that starts removes all that lie in its folder,
    another server's in /tmp too.
    """
    data, temporary = settings.directory / "mariadb", settings.directory / "mariadb-tmp"
    for folder in (data, temporary):
        folder.mkdir(mode=0o700)
    words = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}"]
    words += [f"--socket={data}/socket", f"--pid-file={data}/pid"]
    words += ["--skip-networking", "--skip-grant-tables", f"--user={user_name()}"]
    # The accounting of a sandbox need not survive a power failure.
    words += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-log-file-size=8M"]
    start(settings, "mariadbd", words)
    wait_until(settings, lambda: not sql(settings, "CREATE DATABASE mysql"), "MariaDB answers", "mariadbd")
    if refused := sql(settings, SYSTEM_TABLES.read_text(), "mysql"):
        raise SandboxError(f"MariaDB and {SYSTEM_TABLES}: {refused}", log=log_of(settings, "mariadbd"))


def sql(settings: Settings, statements: str, *words: str) -> str:
    """Have the database server carry out some statements; return what it said against them, else ""."""
    command = ["mariadb", "--no-defaults", "-S", str(settings.directory / "mariadb" / "socket"), *words]
    done = subprocess.run(command, input=statements, text=True, capture_output=True, timeout=20)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def start_slurmdbd(settings: Settings) -> None:
    start(settings, "slurmdbd", ["slurmdbd", "-D"], node=NODES[0])
    wait_until(settings, lambda: listens(settings, "slurmdbd"), "slurmdbd listens", "slurmdbd")


def start_slurmctld(settings: Settings) -> None:
    """Start the controller; a slurmd that comes before it listens would try again only seconds later."""
    start(settings, "slurmctld", ["slurmctld", "-D", "-c"], node=NODES[0])
    wait_until(settings, lambda: listens(settings, "slurmctld"), "slurmctld listens", "slurmctld")


def listens(settings: Settings, daemon: str) -> bool:
    """Return whether a daemon's port has a listener inside the controller's network."""
    address = settings.addresses[NODES[0]], settings.ports[daemon]
    if not settings.namespaces:
        with socket.socket() as trial:
            return trial.connect_ex(address) == 0
    words = ["ss", "-Hltn", f"sport = :{address[1]}"]
    return bool(subprocess.run([*settings.prefix, *words], capture_output=True, timeout=20).stdout.strip())


def start_slurmd(settings: Settings, node: str) -> None:
    (settings.node_directory(node) / "spool").mkdir(parents=True, exist_ok=True)
    start(settings, f"{node}/slurmd", ["slurmd", "-D", "-N", node], node=node)


def start(settings: Settings, name: str, words: list[str], node: str | None = None) -> None:
    """Start a daemon, on a node if one is given; NAME.out has its words, NAME.pid its process."""
    program = find(words[0])
    if program is None:
        raise SandboxError(f"{words[0]} cannot be found", code=2)
    command = [*(on_node(settings, node) if node else []), program, *words[1:]]
    extra = {"MYSQL_UNIX_PORT": f"{settings.directory}/mariadb/socket"}
    with (settings.directory / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=clean_environment() | {"SLURM_CONF": str(settings.slurm_conf)} | extra,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    (settings.directory / f"{name}.pid").write_text(f"{process.pid}\n")


def clean_environment() -> dict[str, str]:
    """The environment without variables of another Slurm's job."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def log_of(settings: Settings, name: str) -> Path:
    """A daemon's own log, or what it printed where it has none."""
    log = settings.directory / f"{name}.log"
    return log if log.exists() and log.stat().st_size else log.with_suffix(".out")


def wait_until(settings: Settings, condition: Callable[[], bool], what: str, daemon: str) -> None:
    """Wait for what a daemon brings about; its end, or the time limit, is an error that shows its log."""
    deadline = time.monotonic() + LIMIT_SECONDS
    pid = int((settings.directory / f"{daemon}.pid").read_text())
    while not condition():
        if not alive(pid):
            raise SandboxError(f"{daemon} ended before {what}", log=log_of(settings, daemon))
        if time.monotonic() > deadline:
            raise SandboxError(f"waited {LIMIT_SECONDS:.0f} s until {what}", log=log_of(settings, daemon))
        time.sleep(0.1)


def answer(settings: Settings, command: str) -> str:
    """What a Slurm command prints inside the sandbox; nothing when it fails or takes long."""
    words = [*settings.prefix, *command.split()]
    try:
        done = subprocess.run(words, env=settings.environment, capture_output=True, text=True, timeout=10)
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def node_states(settings: Settings) -> list[str]:
    """The state of each node in Slurm's words ("idle", "down*", ...); empty when the controller does not answer."""
    return [line.partition("|")[2] for line in sorted(answer(settings, "sinfo -h -N -p low -o %N|%T").split())]


def running_daemons(settings: Settings) -> dict[str, bool]:
    """Whether each daemon that was started still runs."""
    states = {}
    for path in sorted([*settings.directory.glob("*.pid"), *settings.directory.glob("n?/*.pid")]):
        name = str(path.relative_to(settings.directory).with_suffix(""))
        states[name] = holds(int(path.read_text()), settings.directory)
    return states
