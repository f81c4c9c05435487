"""`kapdist-launch COMMAND ...`, wherever kapdist is installed, does what `python launch/COMMAND.py ...` does."""

from __future__ import annotations

import runpy
import sys

from kapdist.errors import InputError, shown
from launch.command import HERE, command_line, spelled

COMMANDS = {
    "train": "queue a training on Slurm, or run the same job on this machine",
    "attack": "queue an attack on Slurm: a plan, arrays of shards, an aggregation",
    "study": "queue all that is missing of a study on Slurm",
    "status": "say where a run, an attack or a study stands",
}


def main() -> None:
    command_line(chosen)


def chosen() -> None:
    """Run the command that the first word names, as the file of that name does."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [spelled(name), *words]
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    elif name in ("-h", "--help"):
        lines = [f"  {command:<8}{what}" for command, what in COMMANDS.items()]
        print("\n".join([f"usage: kapdist-launch {{{','.join(COMMANDS)}}} ...", "", *lines]))
    else:
        raise InputError("kapdist-launch", f"one of {', '.join(COMMANDS)}", shown(name))


if __name__ == "__main__":
    main()
