#!/usr/bin/env python3
"""A real two-node Slurm with accounting on this machine, to try the cluster path without a cluster.

    tools/slurm_sandbox.py up [--namespaces] [--cpus 4]     # prints what to export
    tools/slurm_sandbox.py status
    tools/slurm_sandbox.py down                             # nothing is left behind

Its nodes are n1 and n2, its partitions `low` (jobs are preempted with 20 s of grace), `low0` (without grace) and
`high` (preempts both). With --namespaces each node has a network and an address of its own, joined by a link that
`cut` and `mend` act on (needs root). Everything lives in one directory, with ports, a munge and a database of its
own: a Slurm that the machine already has is not touched. Needs Debian's packages, installs those that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from sandbox.configuration import env_sh, write_configuration
from sandbox.daemons import node_states, running_daemons, start_daemons, start_slurmd
from sandbox.network import create_namespaces, remove_namespaces, set_link
from sandbox.packages import install, missing_packages
from sandbox.processes import kill_all, kill_slurmd
from sandbox.settings import (
    LONGEST_DIRECTORY,
    NODES,
    SandboxError,
    Settings,
    choose_settings,
    default_directory,
    load_settings,
)

REPOSITORY = Path(__file__).resolve().parents[1]
TAIL_LINES = 15
EXAMPLES = """\
try:  {prefix}sinfo
      {prefix}srun -N2 hostname
      {prefix}sbatch -p high -N2 --exclusive --wrap 'sleep 4'     # preempts what runs in low
      {program} down{where}"""


def up(options: argparse.Namespace) -> int:
    directory = options.dir
    known = load_settings(directory)
    if known and is_up(known):
        print(f"slurm sandbox: up already in {directory}")
        print(env_sh(known), end="")
        return 0
    if known:
        print(f"slurm sandbox: what is left of one in {directory} is taken down first")
        take_down(known)
    check(options)
    if missing := missing_packages(options.accounting, options.namespaces):
        install(missing)
    started = time.monotonic()
    settings = choose_settings(directory, options.cpus, options.accounting, options.namespaces, options.task_plugin)
    create(settings)
    nodes = f"2 nodes of {settings.cpus} CPUs and {settings.memory_mb} MB"
    print(f"slurm sandbox: up in {time.monotonic() - started:.1f} s in {directory}: {nodes}\n")
    print(env_sh(settings))
    prefix = "$SLURM_SANDBOX_PREFIX " if settings.prefix else ""
    where = "" if directory == default_directory() else f" --dir {directory}"
    print(EXAMPLES.format(prefix=prefix, program=sys.argv[0], where=where))
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse a directory that `down` must not delete, and what this user may not do."""
    directory = options.dir
    if directory.is_relative_to(REPOSITORY):
        raise SandboxError(f"--dir: expected a directory outside {REPOSITORY}, found {directory}", code=2)
    if len(str(directory)) > LONGEST_DIRECTORY:
        raise SandboxError(f"--dir: expected at most {LONGEST_DIRECTORY} characters, found {directory}", code=2)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SandboxError(f"--dir: expected a new or an empty directory, found {directory}", code=2)
    if options.cpus < 1:
        raise SandboxError(f"--cpus: expected at least 1, found {options.cpus}", code=2)
    if options.namespaces and os.geteuid() != 0:
        raise SandboxError("--namespaces: expected to be run as root (or with sudo)", code=2)


def create(settings: Settings) -> None:
    """Make directory, namespaces and daemons; when anything fails, or is interrupted, take all of it down."""
    settings.directory.mkdir(parents=True, exist_ok=True)
    try:
        (settings.directory / "state").mkdir()
        settings.save()
        write_configuration(settings)
        if settings.namespaces:
            create_namespaces(settings)
        start_daemons(settings)
    except BaseException as error:
        if isinstance(error, SandboxError):
            error = with_tail(error)
        take_down(settings)
        raise error from None


def with_tail(error: SandboxError) -> SandboxError:
    """Put the end of the log, which is about to go, into the words of an error."""
    if error.log is None or not error.log.exists():
        return error
    tail = error.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return SandboxError("\n".join([f"{error}; the end of {error.log.name}:", *tail]), error.code)


def down(options: argparse.Namespace) -> int:
    settings = load_settings(options.dir)
    if settings is None:
        print(f"slurm sandbox: none in {options.dir}")
        return 0
    print(f"slurm sandbox: down: {take_down(settings)}")
    return 0


def take_down(settings: Settings) -> str:
    """End and remove everything; the directory goes last, so that an interrupted `down` can be repeated."""
    killed = kill_all(settings)
    namespaces = remove_namespaces(settings)
    shutil.rmtree(settings.directory)
    parts = [f"{killed} processes ended", *([f"{len(namespaces)} namespaces removed"] if namespaces else [])]
    return ", ".join([*parts, f"{settings.directory} removed"])


def is_up(settings: Settings) -> bool:
    return all(running_daemons(settings).values()) and len(node_states(settings)) == len(NODES)


def status(options: argparse.Namespace) -> int:
    """Print where a sandbox stands; the exit code is 0 when every daemon runs and the controller answers."""
    settings = load_settings(options.dir)
    if settings is None:
        print("{}" if options.json else f"slurm sandbox: none in {options.dir}")
        return 1
    daemons, states = running_daemons(settings), node_states(settings)
    nodes = dict(zip(NODES, states, strict=False))
    healthy = all(daemons.values()) and len(states) == len(NODES)
    if options.json:
        facts = {"up": healthy, "slurm_conf": str(settings.slurm_conf), "prefix": settings.prefix}
        more = {"daemons": daemons, "nodes": nodes, "addresses": settings.addresses, "ports": settings.ports}
        print(json.dumps(facts | more | {"namespaces": settings.namespaces}, indent=2))
        return 0 if healthy else 1
    print(f"slurm sandbox: {'up' if healthy else 'not whole'} in {settings.directory}")
    for name, runs in daemons.items():
        print(f"  {name:10} {'runs' if runs else 'GONE'}")
    for node in NODES:
        print(f"  {node:10} {nodes.get(node, 'no answer')}")
    print(env_sh(settings), end="")
    return 0 if healthy else 1


def existing(options: argparse.Namespace) -> Settings:
    settings = load_settings(options.dir)
    if settings is None:
        raise SandboxError(f"no sandbox in {options.dir}: run `{sys.argv[0]} up` first", code=2)
    return settings


def cut(options: argparse.Namespace) -> int:
    set_link(existing(options), "down")
    return 0


def mend(options: argparse.Namespace) -> int:
    set_link(existing(options), "up")
    return 0


def stop_node(options: argparse.Namespace) -> int:
    """Kill a node's slurmd; with --hard all that runs on it, as a power failure would."""
    settings = existing(options)
    killed = kill_all(settings, options.node) if options.hard else kill_slurmd(settings, options.node)
    print(f"{options.node}: {killed} processes killed")
    return 0


def start_node(options: argparse.Namespace) -> int:
    settings = existing(options)
    if running_daemons(settings).get(f"{options.node}/slurmd"):
        print(f"{options.node}: its slurmd runs already")
    else:
        start_slurmd(settings, options.node)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: object, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--dir", type=Path, default=default_directory(), help="default: %(default)s")
        sub.set_defaults(act=act)
        return sub

    starting = command("up", up, "start one")
    starting.add_argument("--namespaces", action="store_true", help="a network of its own for each node")
    starting.add_argument("--cpus", type=int, default=4, help="per node; may exceed the machine's (default: 4)")
    starting.add_argument("--no-accounting", dest="accounting", action="store_false", help="without sacct")
    binding = "bind tasks to CPUs as most clusters do (--cpus must be real ones), or not (default)"
    starting.add_argument("--task-plugin", choices=("none", "affinity"), default="none", help=binding)
    command("down", down, "end it and remove all of it")
    command("status", status, "say where it stands").add_argument("--json", action="store_true")
    command("cut", cut, "cut the link between the nodes")
    command("mend", mend, "mend the link")
    stopping = command("stop-node", stop_node, "kill a node's slurmd")
    stopping.add_argument("--hard", action="store_true", help="and all that runs on the node")
    for sub in (stopping, command("start-node", start_node, "start a node's slurmd again")):
        sub.add_argument("node", choices=NODES)
    return parser.parse_args()


def main() -> int:
    options = parse()
    options.dir = options.dir.expanduser().resolve()
    try:
        return int(options.act(options))
    except SandboxError as error:
        print(f"slurm sandbox: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
