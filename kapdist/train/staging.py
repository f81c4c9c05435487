"""The ranks of a run have its betons staged: one of each node copies, and all can be asked to stop meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from kapdist.data.beton.layout import BetonInfo
from kapdist.data.beton.stage import POLL_SECONDS, Staging
from kapdist.engine import Ranks
from kapdist.errors import StoppedError
from kapdist.train.stop import Stop
from kapdist.train.watchdog import Watchdog


def stage(
    folder: Path | None, betons: tuple[BetonInfo, ...], ranks: Ranks, stop: Stop, watchdog: Watchdog
) -> tuple[BetonInfo, ...]:
    """Return betons as they are read from a folder of the node's; as they are where none is named, or has no room.

    Raises:
        InputError: the folder cannot be, or a beton's bytes are not those of its manifest.
        StoppedError: a signal asked for it; no half copy is left.
    """
    if folder is None:
        return betons
    for copies in (True, False):  # the first rank of each node, then those that find what it made
        staging = ranks.together(lambda: Staging([info.path for info in betons], folder))
        if (ranks.local_rank == 0) == copies:
            staging.start()
            mine = staging
        wait(staging, ranks, stop, watchdog)
    places = ranks.together(mine.result)
    return tuple(
        replace(info, path=path, layout=replace(info.layout, path=path))
        for info, path in zip(betons, places, strict=True)
    )


def wait(staging: Staging, ranks: Ranks, stop: Stop, watchdog: Watchdog) -> None:
    """Wait until no rank copies any more; the watchdog hears of it as long as one of them gets on."""
    turns = 0
    try:
        while ranks.any(staging.is_alive()):
            if ranks.any(staging.turns != turns):
                watchdog.beat(0)
            turns = staging.turns
            stop.leave_if_early()
            time.sleep(POLL_SECONDS)
    except StoppedError:
        staging.ending.set()
        if staging.is_alive():
            staging.join()
        raise
