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


def chunks_of(num_chunks: int, shard: int, num_shards: int, costs: Sequence[float] = ()) -> Sequence[int]:
    """Return the chunks of a shard, ascending; with costs they are balanced, else dealt out in turn.

    In turn and not in stretches: neighbouring images are often of one class and so equally hard, and a stretch of
    robust ones would keep one shard busy long after the others.
    """
    return deal(num_chunks, num_shards, costs)[shard] if costs else range(shard, num_chunks, num_shards)


def deal(num_chunks: int, num_shards: int, costs: Sequence[float] = ()) -> list[Sequence[int]]:
    """Return the chunks of every shard: the costliest first, each to the shard that has least (Graham 1969)."""
    if not costs:
        return [range(shard, num_chunks, num_shards) for shard in range(num_shards)]
    assert len(costs) == num_chunks
    hands: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [(0.0, shard) for shard in range(num_shards)]
    for chunk in sorted(range(num_chunks), key=lambda chunk: (-costs[chunk], chunk)):
        load, shard = loads[0]
        hands[shard].append(chunk)
        heapq.heapreplace(loads, (load + costs[chunk], shard))
    return [sorted(hand) for hand in hands]


def num_chunks(attack: AttackDir) -> int:
    """Return the number of chunks of a planned attack.

    Raises:
        InputError: there is no plan, or it is not one.
    """
    return chunks_and_costs(attack)[0]


def chunks_and_costs(attack: AttackDir) -> tuple[int, list[float]]:
    """Return the number of chunks of a planned attack and their costs, if the plan has any.

    Raises:
        InputError: there is no plan, or it is not one.
    """
    try:
        plan = json.loads(attack.plan.read_text())
        return -(-len(plan["images"]) // int(plan["chunk_size"])), list(plan.get("costs", ()))
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
    finished, (planned, costs) = finished_chunks(attack), chunks_and_costs(attack)
    hands = deal(planned, num_shards, costs)
    lacking = {shard: [chunk for chunk in hand if chunk not in finished] for shard, hand in enumerate(hands)}
    return {shard: chunks for shard, chunks in lacking.items() if chunks}
