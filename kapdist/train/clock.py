"""When the loop logs, evaluates and saves, and how fast it goes."""

from __future__ import annotations

import time

from kapdist.config import TrainConfig
from kapdist.engine import Ranks
from kapdist.plan.training import Plan, look_every


class Clock:
    """Decides by step; by rank 0's time for checkpoints every so many minutes, so that all ranks agree."""

    def __init__(self, config: TrainConfig, plan: Plan, step: int) -> None:
        self.config = config
        self.plan = plan
        self.started = self.saved = time.monotonic()
        self.logged_step = step

    def logs(self, step: int) -> bool:
        return step % self.config.log_every_steps == 0 or step == self.plan.total_steps

    def evaluates(self, step: int) -> bool:
        steps = self.config.evaluate_every_epochs * self.plan.steps_per_epoch
        return step % steps == 0 or step == self.plan.total_steps

    def saves(self, step: int, ranks: Ranks) -> bool:
        """True at steps that end with a checkpoint; the last step ends with the weights instead."""
        if step == self.plan.total_steps:
            return False
        by_step = self.config.checkpoint_every_steps
        due = bool(by_step) and step % by_step == 0
        if not due and self.config.checkpoint_every_minutes and step % look_every(self.config) == 0:
            late = time.monotonic() - self.saved > 60 * self.config.checkpoint_every_minutes
            due = ranks.any(late and ranks.first)
        if due:
            self.saved = time.monotonic()
        return due

    def taken(self, step: int) -> dict[int, int]:
        """Return {steps finished before it: its images over all ranks} of the steps since the last call."""
        before, self.logged_step = self.logged_step, step
        return {taken: len(self.plan.batch(taken)) for taken in range(before, step)}

    def elapsed(self) -> float:
        """Return the seconds since this attempt's first step."""
        return time.monotonic() - self.started
