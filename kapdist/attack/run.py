"""`attack run`: plan, all chunks in processes of this machine, merge."""

from __future__ import annotations

import sys
from pathlib import Path

from kapdist.attack.merge import merge_chunks
from kapdist.attack.plan import attack_dir_of, write_new_plan
from kapdist.attack.shard import Chunks
from kapdist.attack.units import do_all
from kapdist.config import AttackConfig
from kapdist.records.summary import Summary
from kapdist.run.asked import ended_by_sigterm
from kapdist.run.files import check_outputs
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir
from kapdist.tracking.sender import tell


def run_attack(run: Path, config: AttackConfig, *, here: bool = False) -> Summary:
    """Attack a run's model, or with model.factory any other one; what was done before is not done again.

    Args:
        run: a run directory; with model.factory any directory, made if need be.
        here: all chunks in this process, and not in `num_shards` others.

    Raises:
        InputError: as plan_attack, run_shard and merge.
        RuntimeError: a shard failed; its last lines are in the message.
        TimeoutError: config.timeout_minutes went by. What is done is kept.
    """
    attack = attack_dir_of(run, config)
    with locked(attack.lock), ended_by_sigterm():
        check_outputs(attack.plan, attack.summary, attack.records, RunDir(run).worst_case)
        plan = write_new_plan(run, config, attack)
        for note in plan.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        if config.num_shards > plan.num_chunks and not here:
            busy = f"{plan.num_chunks} of {config.num_shards} processes (num_shards) have a chunk to do"
            print(f"note: {busy}; a chunk_size below {plan.chunk_size} makes more chunks", file=sys.stderr)
        do_all(Chunks(attack, plan), config.num_shards, config.timeout_minutes, here=here)
        summary = merge_chunks(attack, plan)
    tell([run])
    return summary
