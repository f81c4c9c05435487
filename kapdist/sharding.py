"""Which shard attacks which chunks; known without the model, so that a login node can tell what is missing."""

from __future__ import annotations

import heapq
import json
import os
import re
from collections.abc import Sequence

from kapdist.errors import InputError
from kapdist.rundir import AttackDir

CHUNK = re.compile(r"chunk-(\d+)\.parquet")


def deal(costs: Sequence[float], num_shards: int) -> list[list[int]]:
    """Return the chunks of every shard, ascending: the costliest chunk first, each to the shard that has least.

    Chunks of equal cost are dealt out in turn and not in stretches: neighbouring images are often of one class and
    so equally hard, and a stretch of robust ones would keep one shard busy long after the others. Source: Graham,
    "Bounds on multiprocessing timing anomalies", 1969.
    """
    hands: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [(0.0, shard) for shard in range(num_shards)]
    for chunk in sorted(range(len(costs)), key=lambda chunk: (-costs[chunk], chunk)):
        load, shard = loads[0]
        hands[shard].append(chunk)
        heapq.heapreplace(loads, (load + costs[chunk], shard))
    return [sorted(hand) for hand in hands]


def chunk_sizes(num_images: int, chunk_size: int) -> list[float]:
    """Return the images of every chunk: what it costs where nothing was measured."""
    return [float(min(chunk_size, num_images - start)) for start in range(0, num_images, chunk_size)]


def planned_costs(attack: AttackDir) -> list[float]:
    """Return the expected cost of every chunk of a planned attack.

    Raises:
        InputError: there is no plan, or it is not one.
    """
    try:
        plan = json.loads(attack.plan.read_text())
        return plan.get("costs") or chunk_sizes(len(plan["images"]), int(plan["chunk_size"]))
    except FileNotFoundError:
        raise InputError(
            attack.root, "an attack directory (kapdist attack plan RUN CONFIG)", "no plan.json"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(attack.plan, "a plan", str(error)) from None


def finished_chunks(attack: AttackDir) -> set[int]:
    """Return the chunks that have a file; the merge looks into them."""
    try:
        with os.scandir(attack.chunks) as entries:  # asks nothing per file: there may be 10,000, on a shared disk
            names = [CHUNK.fullmatch(entry.name) for entry in entries if entry.is_file()]
    except FileNotFoundError:
        return set()
    return {int(name[1]) for name in names if name}


def missing_shards(attack: AttackDir, num_shards: int) -> dict[int, list[int]]:
    """Return {shard: its chunks that have no file}, of the shards that lack any."""
    finished = finished_chunks(attack)
    hands = enumerate(deal(planned_costs(attack), num_shards))
    lacking = {shard: [chunk for chunk in hand if chunk not in finished] for shard, hand in hands}
    return {shard: chunks for shard, chunks in lacking.items() if chunks}
