"""How many images fill a GPU: the rows of a chunk, and of the largest batch of draws, where no config says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from kapdist.attack.devices import device_kind
from kapdist.attack.model import load_model
from kapdist.config import AttackConfig
from kapdist.records.attack_plan import AttackPlan, PlannedModel

FEWEST, MOST = 16, 512  # beyond these rows a GPU has more than enough to do, and a chunk is lost when it is killed
SHARE = 0.4  # of the memory: an attack keeps some ten copies of its images, and graphs their passes
MEASURED = 4, 12


def rows_of(
    config: AttackConfig, before: AttackPlan | None, model: PlannedModel, run: Path, side: int
) -> tuple[int, int]:
    """Return (images of a chunk, rows of a pass): as written, as the plan has them that is there, or as fit."""
    rows = config.chunk_size, config.images_per_pass
    if before is not None:
        rows = rows[0] or before.chunk_size, rows[1] or before.images_per_pass
    if all(rows):
        return rows
    if device_kind(config.device) == "cpu":
        return config.rows_of_a_chunk, config.rows_of_a_pass
    processes = -(-config.num_shards // torch.cuda.device_count())
    fit = rows_that_fit(load_model(model, run).cuda(), side, processes)
    return rows[0] or fit, rows[1] or fit


def rows_that_fit(model: nn.Module, side: int, processes: int) -> int:
    """Return how many images of (3, side, side) a GPU passes forward and back at once, a power of two."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return rows_within(SHARE * total / processes, lambda rows: peak_bytes(model, rows, side))


def rows_within(budget: float, peak: Callable[[int], int]) -> int:
    """Return the power of two whose pass stays within a budget, by the peaks of two sizes."""
    few, more = MEASURED
    each = max(1.0, (peak(more) - peak(few)) / (more - few))
    rows = FEWEST
    while rows < MOST and 2 * rows * each <= budget:
        rows *= 2
    return rows


def peak_bytes(model: nn.Module, rows: int, side: int) -> int:
    images = torch.zeros(rows, 3, side, side, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.autograd.grad(model(images).sum(), images, allow_unused=True)
    return torch.cuda.max_memory_allocated() - before
