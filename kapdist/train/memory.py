"""How much memory a rank took at its peak."""

from __future__ import annotations

import resource

import torch

from kapdist.engine import Ranks


def peak_memory_bytes(ranks: Ranks) -> list[int]:
    """Return each rank's peak: of the GPU where it trains on one, else of the process."""
    if ranks.device.type == "cuda":
        return ranks.gather(torch.cuda.max_memory_allocated(ranks.device))
    return ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
