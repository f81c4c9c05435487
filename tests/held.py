"""A training that waits at a step, or in an evaluation, until it is asked to stop or killed.

Else whoever disturbs it there has to be quicker than it is, on a machine that is busy with other things.
"""

from __future__ import annotations

from pathlib import Path

PROGRAM = """\
import time
from kapdist import cli
from kapdist.train import job, loop

take_step, poll, polls = loop.train_step, job.poll, []

def wait(this):
    # The last rank alone: the others wait for it, and so does what they tell one another.
    while this.ranks.rank == this.ranks.world_size - 1 and not this.stop.asked_by:
        time.sleep(0.01)

def step_held(this, batches, step, measure):
    if step == {step}:
        wait(this)
    return take_step(this, batches, step, measure)

def evaluation_held(this, step):
    polls.append(step)
    if len(polls) == {batch}:
        wait(this)
    return poll(this, step)

loop.train_step, job.poll = step_held, evaluation_held
cli.main()
"""


def held(folder: Path, step: int | None = None, batch: int | None = None) -> list[str]:
    """Return what stands for `-m kapdist.cli`, in a folder; it is the last rank that is to be asked.

    Args:
        step: after so many finished steps it waits.
        batch: in an evaluation, at this batch of this process.
    """
    name = f"held-{step}-{batch}.py"
    (folder / name).write_text(PROGRAM.format(step=step, batch=batch))
    return [name]
