"""Ranks that are started host by host, and read what lies on their own hosts: what has to be one thing is compared.

Each rank takes its share of an epoch, its images, its step of the optimizer by what it was told and finds itself.
Where that is not what the first rank has nothing fails: weights drift apart, or a share of the images is others.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kapdist.config import flatten
from kapdist.config.fields import Section
from kapdist.engine import Ranks
from kapdist.errors import InputError, shown

# What a rank may be told otherwise: where things lie on its host, how fast it goes, what the first alone does.
# Betons are compared by their images, and the weights that a training begins with are the first rank's.
OF_A_HOST = {
    *("runs_dir", "data.train", "data.validation", "model.weights", "engine.device", "engine.threads"),
    *("data.backend", "data.cache", "data.workers", "data.on_device", "data.batches_ahead", "data.timeout_seconds"),
    *("engine.timeout_minutes", "train.stall_minutes", "train.keep_checkpoints", "train.profile_steps"),
    *("train.wandb_project", "train.wandb_mode", "train.mlflow_experiment", "train.mlflow_uri"),
    "train.tracker_seconds",
}


def check_told(config: Section, ranks: Ranks, of_a_host: Collection[str] = OF_A_HOST) -> None:
    """Refuse a config that is not the first rank's.

    Raises:
        InputError: names the key, and whose it is.
    """
    check_alike(lambda: {key: value for key, value in flatten(config).items() if key not in of_a_host}, ranks)


def check_alike(found: Callable[[], Mapping[str, Any]], ranks: Ranks) -> None:
    """Refuse what a rank finds where it is not what the first one finds; all ranks call it together.

    Args:
        found: returns values by what a message calls them; not called by a rank alone.

    Raises:
        InputError: on the first rank that differs; what `found` raises.
    """
    if ranks.world_size == 1:
        return
    mine = ranks.together(found)
    first = ranks.from_first(lambda: mine)

    def compare() -> None:
        for key in {**first, **mine}:
            if mine.get(key) != first.get(key):
                place = f"{key} of rank {ranks.rank} on {socket.gethostname()}"
                raise InputError(place, f"{shown(first.get(key))}, as rank 0 has it", shown(mine.get(key)))

    ranks.together(compare)
