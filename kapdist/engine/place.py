"""A process's place among the ranks of its job, as torchrun or srun say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from kapdist.errors import InputError


class Place(NamedTuple):
    """Which of how many, in the job and on the node. One process alone is 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def place_from(environ: Mapping[str, str]) -> Place:
    """Return the place that the environment gives this process; torchrun's variables come before Slurm's.

    Raises:
        InputError: a variable is missing, is no number, or contradicts another.
    """
    if "RANK" in environ:
        return checked(environ, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # A batch script has SLURM_PROCID too, but only srun starts a step. In the shell that salloc opens under
    # use_interactive_step, a step of one task, SLURM_NTASKS is the allocation's.
    if "SLURM_STEP_ID" in environ:
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        on_nodes = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1"))
        here = tasks_of_node(on_nodes, number(environ, "SLURM_NODEID", default=0))
        return checked(dict(environ) | {"LOCAL": str(here)}, "SLURM_PROCID", size, "SLURM_LOCALID", "LOCAL")
    return Place()


def checked(environ: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str) -> Place:
    """Read a place from the variables of these names; where a rank is alone, the last two may be missing."""
    default = 0 if number(environ, size) == 1 else None
    place = Place(
        number(environ, rank),
        number(environ, size),
        number(environ, local_rank, default),
        number(environ, local_size, None if default is None else 1),
    )
    for name, value, limit in (
        (rank, place.rank, place.world_size),
        (local_rank, place.local_rank, place.local_world_size),
    ):
        if value >= limit:
            raise InputError(f"environment variable {name}", f"less than {limit}, how many there are", str(value))
    if place.local_world_size > place.world_size:
        found = f"{place.local_world_size} of {place.world_size}"
        raise InputError(f"environment variable {local_size}", "no more ranks on a node than in the job", found)
    return place


def number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    word = environ.get(name, "" if default is None else str(default)).strip()
    if not (word.isascii() and word.isdecimal()):
        found = repr(environ[name]) if name in environ else "nothing"
        raise InputError(f"environment variable {name}", "a whole number", found)
    return int(word)


def tasks_of_node(words: str, node: int) -> int:
    """Return how many tasks a node of the step has, by Slurm's list: "4(x2),2" is 4, 4 and 2."""
    counts: list[int] = []
    for word in words.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word.strip())
        if not found:
            raise InputError(
                "environment variable SLURM_STEP_TASKS_PER_NODE", 'a list such as "4(x2),2"', repr(words)
            )
        counts += [int(found[1])] * int(found[2] or 1)
    return counts[min(node, len(counts) - 1)]
