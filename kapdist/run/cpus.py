"""How many CPUs a process has to itself where several work on a node. Pure.

A process sees its mask. Whether that is its own or the whole node's, which others have too, only the words of who
started it tell: under Slurm's task/affinity, as most clusters are set up, each task has a mask of its own already.
"""

from __future__ import annotations

from collections.abc import Mapping


def cpus_of_one(mask: int, environ: Mapping[str, str], processes: int) -> int:
    """Return the CPUs of each of some processes of one kind on this node; at least 1.

    Args:
        mask: CPUs that this process may run on. With hyperthreads these are threads, whatever Slurm counts.
        processes: on this node, started by srun, or by somebody else in each of its tasks.
    """
    if "SLURM_STEP_ID" not in environ:
        return max(1, mask // processes)
    tasks = tasks_on_node(environ)
    in_a_task = -(-processes // tasks)
    if together := tasks_under_one_mask(environ, mask):
        return max(1, mask // (in_a_task * together))
    share = mask // processes
    if "SLURM_CPUS_PER_TASK" in environ:  # a step that does not bind its tasks still says what each may use
        share = min(share, int(environ["SLURM_CPUS_PER_TASK"]) // in_a_task)
    return max(1, share)


def tasks_under_one_mask(environ: Mapping[str, str], mask: int) -> int | None:
    """Return how many tasks of the step have CPUs of this one's mask, itself included; None where nothing is bound.

    Tasks that are bound to a socket, for instance, share it.
    """
    tasks = tasks_on_node(environ)
    if masks := listed_masks(environ):
        own = masks[int(environ.get("SLURM_LOCALID", 0)) % len(masks)]
        return sum(bool(own & masks[task % len(masks)]) for task in range(tasks)) or None
    # Bound in a way that lists no masks: then there are as many disjoint ones on the node's share as tasks.
    on_node = int(environ.get("SLURM_CPUS_ON_NODE", 0))
    return 1 if tasks > 1 and mask * tasks <= on_node else None


def listed_masks(environ: Mapping[str, str]) -> list[int]:
    """Return the masks that srun gave the tasks of a node, over CPUs or memory domains; empty if it says none.

    They are hexadecimal masks ("0xf,0xf0") or single numbers ("0,2"); tasks beyond the list begin it again.
    """
    kind = environ.get("SLURM_CPU_BIND_TYPE", "")
    words = [word for word in environ.get("SLURM_CPU_BIND_LIST", "").split(",") if word]
    masks = []
    try:
        for word in words:
            value, _, times = word.partition("*")
            bits = int(value, 16) if kind.startswith("mask_") else 1 << int(value, 0)
            masks += [bits] * int(times or 1)
    except ValueError:
        return []
    return masks if kind.startswith(("mask_", "map_")) else []


def tasks_on_node(environ: Mapping[str, str]) -> int:
    """Return how many tasks of this step Slurm started on this node: of "2(x3),1" one on the last of four nodes."""
    counts: list[int] = []
    for word in environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1")).split(","):
        count, _, nodes = word.rstrip(")").partition("(x")
        counts += [int(count)] * int(nodes or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else counts[0]
