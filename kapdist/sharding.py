"""Which shard attacks which chunks; known without the model, so that a login node can tell what is missing."""

from __future__ import annotations

import json
import os
import re

from kapdist.errors import InputError
from kapdist.rundir import AttackDir

CHUNK = re.compile(r"chunk-(\d+)\.parquet")


def chunks_of(num_chunks: int, shard: int, num_shards: int) -> range:
    """Return the chunks of a shard, dealt out in turn and not in stretches.

    Neighbouring images are often of one class and so equally hard: a stretch of robust ones would keep one shard
    busy long after the others.
    """
    return range(shard, num_chunks, num_shards)


def num_chunks(attack: AttackDir) -> int:
    """Return the number of chunks of a planned attack.

    Raises:
        InputError: there is no plan, or it is not one.
    """
    try:
        plan = json.loads(attack.plan.read_text())
        return -(-len(plan["images"]) // int(plan["chunk_size"]))
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
    finished, planned = finished_chunks(attack), num_chunks(attack)
    lacking = {
        shard: [c for c in chunks_of(planned, shard, num_shards) if c not in finished]
        for shard in range(num_shards)
    }
    return {shard: chunks for shard, chunks in lacking.items() if chunks}
