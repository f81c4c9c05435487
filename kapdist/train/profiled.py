"""torch's profiler for the steps that the config names, as traces for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from kapdist.engine import Ranks
from kapdist.run.paths import RunDir

log = logging.getLogger(__name__)


@contextlib.contextmanager
def profiled(run: RunDir, ranks: Ranks, step: int) -> Iterator[None]:
    """Write what happens in the block, on the host and on the GPU, as the trace of a step; of rank 0."""
    if not ranks.first:
        yield
        return
    cuda = ranks.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as found:
        yield
        if cuda:
            torch.cuda.synchronize(ranks.device)  # what was launched belongs to the step
    path = run.profile(step)
    try:
        path.parent.mkdir(exist_ok=True)
        found.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:  # worth no run
        log.warning("%s was not written: %s", path, error)
    else:
        log.info("the trace of step %d is in %s", step, path)
