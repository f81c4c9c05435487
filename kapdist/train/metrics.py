"""Where numbers go: metrics.jsonl, TensorBoard, the terminal, Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from kapdist.engine import Ranks
from kapdist.rundir import RunDir, write_atomic

log = logging.getLogger(__name__)


class LossMeter:
    """The mean training loss over all ranks since it was last asked for; part of the state of a run."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self.steps = 0

    def add(self, loss: Tensor) -> None:
        self.sum += loss.detach()

    def count_step(self) -> None:
        self.steps += 1

    def mean(self) -> float:
        """Return the mean and start again; all ranks call this together."""
        mean = self.ranks.sum(self.sum.clone()).item() / self.ranks.world_size / self.steps
        self.sum.zero_()
        self.steps = 0
        return mean

    def state(self) -> dict[str, Any]:
        return {"sum": self.sum.cpu(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sum.copy_(state["sum"])
        self.steps = state["steps"]


class MetricsLog:
    """Rank 0's record of a run; on the other ranks every call does nothing.

    A run that continues at an earlier step than it had reached forgets the lines after that step.
    """

    def __init__(self, run: RunDir, step: int, total_steps: int, wandb_project: str | None, active: bool) -> None:
        self.active = active
        self.progress: Progress | None = None
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # rank 0 alone waits for its import

        self.total_steps = total_steps
        forget_after(run, step)
        self.file = run.metrics.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self.wandb = start_wandb(wandb_project, run) if wandb_project else None
        if sys.stderr.isatty():
            self.progress = progress_bar(run.name)
            self.task = self.progress.add_task("", total=total_steps, completed=step)
            self.progress.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add one line of metrics; numbers go to TensorBoard as well. A full disk loses lines, not the run."""
        if not self.active:
            return
        try:
            self.record(kind, step, values)
        except OSError as error:
            log.warning("metrics of step %d were not written: %s", step, error)
        self.say(kind, step, values)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.file.write(json.dumps({"kind": kind, "step": step, **values, "time": time.time()}) + "\n")
        scalars = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, float)}
        for key, value in scalars.items():
            self.tensorboard.add_scalar(key, value, step)
        if self.wandb:
            self.wandb.log(scalars, step=step)

    def say(self, kind: str, step: int, values: dict[str, Any]) -> None:
        words = "  ".join(f"{key} {short(value)}" for key, value in values.items() if key != "peak_memory_bytes")
        if self.progress and kind == "train":
            self.progress.update(self.task, completed=step, description=words)
        else:
            log.info("%s  step %d/%d  %s", kind, step, self.total_steps, words)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        if self.progress:
            self.progress.stop()
        self.file.close()
        self.tensorboard.close()
        if self.wandb:
            self.wandb.finish(exit_code=int(kind is not None))


def forget_after(run: RunDir, step: int) -> None:
    """Drop the lines of steps that will be taken again, and a last line that was cut off."""
    if run.metrics.exists():
        lines = [line for line in run.metrics.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        write_atomic(run.metrics, "".join(line for line in lines if json.loads(line)["step"] <= step))


def progress_bar(name: str) -> Progress:
    return Progress(
        TextColumn(f"[bold]{name}[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )


def start_wandb(project: str, run: RunDir) -> Any:
    import wandb  # an extra: only those who ask for it need it

    return wandb.init(project=project, name=run.name, dir=str(run.root), resume="allow", id=run.name)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
