"""`attack corruptions`: plan, all cells here or in processes of this machine, summary."""

from __future__ import annotations

import sys
from pathlib import Path

from kapdist.attack.plan import config_of
from kapdist.attack.units import do_all
from kapdist.config import AttackConfig
from kapdist.corruptions.plan import plan_corruptions
from kapdist.corruptions.shard import Cells
from kapdist.corruptions.summary import read_reference, write_summary
from kapdist.records.corruptions import CorruptionSummary
from kapdist.run.asked import ended_by_sigterm
from kapdist.run.files import check_outputs
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir
from kapdist.tracking.sender import tell


def run_corruptions(run: Path, config: AttackConfig) -> CorruptionSummary:
    """Predict a run's images, or with model.factory any model's, under corruptions; what is done is kept.

    Args:
        run: a run directory; with model.factory any directory, made if need be.

    Raises:
        InputError: wrong input, or a directory of another plan.
        RuntimeError: a process failed; its last lines are in the message.
        TimeoutError: config.timeout_minutes went by. What is done is kept.
    """
    config_of(run, config)  # a mistyped run is refused before a lock makes its directory
    directory = RunDir(run).corrupted(config.name)
    with locked(directory.lock), ended_by_sigterm():
        check_outputs(directory.plan, directory.summary, directory.table)
        check_outputs(directory.cell("clean"), keep_folders=False)
        plan = plan_corruptions(run, config, directory)
        reference = read_reference(config.corruptions.reference, config.name, plan)
        for note in plan.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        cells = Cells(directory, plan)
        do_all(cells, config.num_shards, config.timeout_minutes, here=config.num_shards == 1)
        summary = write_summary(directory, plan, reference)
    tell([run])
    return summary
