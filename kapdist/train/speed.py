"""What a logged step says of the speed: waiting for data, use of the device, the rank that others wait for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from kapdist.engine import Ranks


class Stopwatch:
    """How long a rank's device spends in some blocks of code, seconds; on GPUs by the device's own clock.

    A host runs ahead of its GPU: while it waits, the GPU may have work. Between two events in the GPU's queue lies
    the time in which it had none but that of the block. Nothing is waited for until it is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of a block; not while steps are recorded."""
        if not self.on_gpu:
            started = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - started
        elif torch.cuda.is_current_stream_capturing():
            yield
        else:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self.events.append((begin, end))

    def read(self) -> float:
        """Return the seconds since the last call."""
        if self.events:
            self.events[-1][1].synchronize()
        seconds = self.seconds + sum(begin.elapsed_time(end) for begin, end in self.events) / 1e3
        self.seconds = 0.0
        self.events.clear()
        return seconds


class Speed:
    """Of the steps between two lines of metrics, and of nothing that lies between the steps.

    Args:
        peak_flops: floating point operations a second that a rank's device is made for; None where nobody knows.
        flops_of: those of one image of the step after so many finished ones.
    """

    def __init__(self, ranks: Ranks, peak_flops: float | None, flops_of: Callable[[int], float | None]) -> None:
        self.ranks, self.peak_flops, self.flops_of = ranks, peak_flops, flops_of
        self.waiting, self.forward = Stopwatch(ranks.device), Stopwatch(ranks.device)
        self.begun = time.monotonic()

    def begin(self) -> None:
        """Begin to count."""
        self.begun = time.monotonic()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Leave out the time of a block, which is no part of a step: of an evaluation."""
        if self.ranks.on_gpu:
            torch.cuda.synchronize(self.ranks.device)  # it may still be at the steps before
        left = time.monotonic()
        try:
            yield
        finally:
            self.begun += time.monotonic() - left

    def describe(self, taken: Mapping[int, int]) -> dict[str, float]:
        """Return the numbers of a logged step, and begin anew; all ranks call it together.

        data_wait is the share of the time in which the rank that waits most has no images. A rank is as late as its
        data and its forwards make it, after which all wait for one another; straggler_lag is how much longer they
        take the last than the rank in the middle, as a share of the time. Recorded steps count by their data alone.

        Args:
            taken: {steps finished before it: its images over all ranks} of each step since the last logged one.
        """
        now = time.monotonic()
        seconds, self.begun = max(now - self.begun, 1e-9), now
        waited, forward = self.waiting.read(), self.forward.read()
        found = self.gathered(waited, waited + forward)
        values = {"images_per_second": sum(taken.values()) / seconds, "data_wait": float(found[0].max()) / seconds}
        if self.ranks.world_size > 1:
            last = int(found[1].argmax())
            values["straggler"] = last
            values["straggler_lag"] = float(found[1][last] - found[1].median()) / seconds
        if self.peak_flops and (flops := self.flops(taken)):
            values["flop_share"] = flops / seconds / (self.peak_flops * self.ranks.world_size)
        return values

    def flops(self, taken: Mapping[int, int]) -> float | None:
        """Return the operations of some steps over all ranks; None where those of one are not known."""
        total = 0.0
        for step, images in taken.items():
            flops = self.flops_of(step)
            if flops is None:
                return None
            total += images * flops
        return total

    def gathered(self, *values: float) -> torch.Tensor:
        """Return every rank's values, (values, ranks), float64 on the host."""
        mine = torch.zeros(len(values), self.ranks.world_size, dtype=torch.float64)
        mine[:, self.ranks.rank] = torch.tensor(values, dtype=torch.float64)
        return self.ranks.sum(mine).cpu()
