"""One attempt at a run: the lock, the logs, DONE or FAILED."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kapdist.config import Config
from kapdist.engine import Ranks
from kapdist.environment import environment
from kapdist.errors import InputError, StoppedError
from kapdist.lock import locked
from kapdist.rundir import RunDir, write_atomic, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A run directory and the number of this start of it, from 1."""

    run: RunDir
    number: int

    @property
    def folder(self) -> Path:
        return self.run.rank_log(self.number, 0).parent


@contextlib.contextmanager
def attempt(config: Config, ranks: Ranks) -> Iterator[Attempt]:
    """Open the run directory for one attempt; what goes wrong inside is written to FAILED.

    Raises:
        InputError: the directory belongs to another config, or another process is at work in it.
    """
    run = RunDir(config.runs_dir / config.name)
    with contextlib.ExitStack() as stack:
        number = ranks.from_first(lambda: begin(run, config, stack))
        stack.enter_context(rank_log(run, number, ranks))
        try:
            yield Attempt(run, number)
        except (InputError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            log.exception("rank %d failed", ranks.rank)
            # The first rank to fail knows why; the others fail because it left.
            if not run.failed.exists():
                write_atomic(run.failed, f"rank {ranks.rank}, attempt {number}\n{traceback.format_exc()}")
            raise


def begin(run: RunDir, config: Config, stack: contextlib.ExitStack) -> int:
    """Claim and lock the directory, count the attempt, write down what it runs on; rank 0 only."""
    run.root.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(run.lock))
    run.claim(config)
    number = run.last_attempt() + 1
    run.rank_log(number, 0).parent.mkdir(parents=True)
    run.failed.unlink(missing_ok=True)
    write_json(run.environment, environment())
    return number


@contextlib.contextmanager
def rank_log(run: RunDir, number: int, ranks: Ranks) -> Iterator[None]:
    """Send this rank's log to its file, and rank 0's to the terminal as well."""
    handlers: list[logging.Handler] = [logging.FileHandler(run.rank_log(number, ranks.rank))]
    if ranks.first:
        handlers.append(logging.StreamHandler(sys.stderr))
    logger = logging.getLogger("kapdist")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
