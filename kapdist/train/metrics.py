"""Where numbers go: metrics.jsonl, which `kapdist.tracking` reads, TensorBoard, the terminal."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from kapdist.engine import Ranks
from kapdist.records.metrics import parse_line
from kapdist.run.files import append_whole, to_json, write_atomic
from kapdist.run.paths import RunDir
from kapdist.run.progress import Progress
from kapdist.train.later import Later

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

    def mean_if_any(self) -> float | None:
        """Return the mean as above, or None where no step has been counted yet."""
        return self.mean() if self.steps else None

    def state(self) -> dict[str, Any]:
        return {"sum": self.sum.cpu(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sum.copy_(state["sum"])
        self.steps = state["steps"]


class MetricsLog:
    """Rank 0's record of a run; on the other ranks every call does nothing.

    A run that continues at an earlier step than it had reached forgets the lines after that step. Neither a full
    disk nor a terminal that was closed ends a run here: what was not written waits until it can be.
    """

    def __init__(self, run: RunDir, step: int, total_steps: int, active: bool) -> None:
        self.active = active
        self.progress: Progress | None = None
        if not active:
            return
        from kapdist.train.events import Events, Scalars  # rank 0 alone waits for the import of tensorboard

        self.total_steps = total_steps
        self.file, self.events, self.scalars = Lines(run, step), Events(run.tensorboard, step), Scalars
        self.lines = Later(run.metrics.name, self.file.append)
        self.board = Later("TensorBoard", self.events.append)
        self.lines.add("")  # forgets and opens
        if sys.stderr.isatty():  # elsewhere the log says it
            self.progress = Progress(run.name, total_steps, unit="steps")
            self.progress.__enter__()
            self.progress.show(step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add one line of metrics; numbers go to TensorBoard as well."""
        if not self.active:
            return
        self.lines.add(to_json({"kind": kind, "step": step, **values, "time": time.time()}) + "\n")
        numbers = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, float)}
        self.board.add(self.scalars(step, numbers))
        self.say(kind, step, values)

    def say(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if kind == "alarm":
            log.warning("step %d/%d: %s", step, self.total_steps, values["text"])
            return
        words = "  ".join(f"{key} {short(value)}" for key, value in values.items() if key != "peak_memory_bytes")
        if self.progress and kind == "train":
            with contextlib.suppress(OSError):  # nobody watches any more
                self.progress.show(step, words)
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
            with contextlib.suppress(OSError):
                self.progress.__exit__(kind, error, trace)
        for later in (self.lines, self.board):
            later.try_again()
            if later.waiting:
                log.warning("%s: %d of its lines were not written", later.what, len(later.waiting))
        for file in (self.file, self.events):
            with contextlib.suppress(OSError):
                file.close()


class Lines:
    """metrics.jsonl of a run that continues at a step."""

    def __init__(self, run: RunDir, step: int) -> None:
        self.run, self.step = run, step
        self.file: IO[bytes] | None = None

    def append(self, line: str) -> None:
        """Write a line whole or, with an OSError, not at all."""
        if self.file is None:
            forget_after(self.run, self.step)
            self.file = self.run.metrics.open("ab", buffering=0)
        append_whole(self.file, line.encode())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def forget_after(run: RunDir, step: int) -> None:
    """Drop the lines of steps that will be taken again; set aside those that are none, and say so.

    The file is another one afterwards in any case: to the old one an attempt may write on that Slurm has lost.
    """
    if not run.metrics.exists():
        return
    content = run.metrics.read_bytes()
    lines = [(line, step_of(line)) for line in content.splitlines(keepends=True)]
    if damaged := [line for line, found in lines if found is None]:
        with run.damaged_metrics.open("ab") as file:
            file.writelines(line if line.endswith(b"\n") else line + b"\n" for line in damaged)
        log.warning("%s: %d damaged lines are in %s now", run.metrics, len(damaged), run.damaged_metrics.name)
    write_atomic(run.metrics, b"".join(line for line, found in lines if found is not None and found <= step))


def step_of(line: bytes) -> int | None:
    """Return the step of a line of metrics; None where it is damaged, or was cut off."""
    entry = parse_line(line) if line.endswith(b"\n") else None
    return None if entry is None else entry["step"]


def peak_memory_bytes(ranks: Ranks) -> list[int]:
    """Return each rank's peak: of the GPU where it trains on one, else of the process."""
    if ranks.device.type == "cuda":
        return ranks.gather(torch.cuda.max_memory_allocated(ranks.device))
    return ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
