"""Which shard attacks which chunks; known without the model, so that a login node can tell what is missing."""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Sequence

from kapdist.errors import InputError
from kapdist.records.sealed import is_whole, read_json
from kapdist.run.paths import AttackDir

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
    if not attack.plan.is_file():
        raise InputError(attack.root, "an attack directory (kapdist attack plan RUN CONFIG)", "no plan.json")
    plan = read_json(attack.plan)
    try:
        num_images, size, costs = len(plan["images"]), int(plan["chunk_size"]), list(plan.get("costs", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(attack.plan, "a plan", repr(error)) from None
    if size < 1:
        raise InputError(attack.plan, "a chunk_size of at least 1", str(size))
    number = -(-num_images // size)
    if costs and len(costs) != number:
        raise InputError(attack.plan, f"a cost for each of the {number} chunks", f"{len(costs)}")
    return number, costs


def finished_chunks(attack: AttackDir) -> set[int]:
    """Return the chunks that have a file; the merge looks into them."""
    try:
        with os.scandir(attack.chunks) as entries:  # asks nothing per file: there may be 10,000, on a shared disk
            names = [CHUNK.fullmatch(entry.name) for entry in entries if entry.is_file()]
    except FileNotFoundError:
        return set()
    return {int(name[1]) for name in names if name}


def whole_chunks(attack: AttackDir) -> set[int]:
    """Return the chunks that have a file which is what was written; reads every one of them."""
    return {chunk for chunk in finished_chunks(attack) if is_whole(attack.chunk(chunk))}


def missing_shards(attack: AttackDir, num_shards: int, *, look_inside: bool = False) -> dict[int, list[int]]:
    """Return {shard: its chunks that are missing}, of the shards that lack any.

    Args:
        look_inside: a chunk whose file is damaged is missing too; reads all files, where else their names will do.
    """
    finished = whole_chunks(attack) if look_inside else finished_chunks(attack)
    planned, costs = chunks_and_costs(attack)
    hands = deal(planned, num_shards, costs)
    lacking = {shard: [chunk for chunk in hand if chunk not in finished] for shard, hand in enumerate(hands)}
    return {shard: chunks for shard, chunks in lacking.items() if chunks}
