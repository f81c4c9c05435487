"""One attempt at a run: the lock, the logs, how it ended, DONE or FAILED."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kapdist.config import Config
from kapdist.ends import DIED, deaths, end_of, fatal_file, say_end, stacks_at_death
from kapdist.engine import Ranks
from kapdist.environment import environment
from kapdist.errors import InputError, StoppedError, TransientError
from kapdist.rundir import RunDir, locked, write_atomic, write_json

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
        number, before = ranks.from_first(lambda: begin(run, config, stack, kind_of(ranks)))
        stack.enter_context(rank_log(run, number, ranks))
        if before:
            log.warning("%s", before)
        this = Attempt(run, number)
        stack.enter_context(stacks_at_death(fatal_file(this.folder, ranks.rank)))
        with told(this, ranks):
            yield this


@contextlib.contextmanager
def told(this: Attempt, ranks: Ranks) -> Iterator[None]:
    """Write down how the attempt ended: one line in its folder, and FAILED for what is a failure."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        raise  # another rank says why, or the user knows
    except StoppedError as stopped:
        say_end(this.folder, str(stopped))
        raise
    except InputError as error:
        say_end(this.folder, f"wrong input: {error}")
        raise
    except BaseException as error:
        log.exception("rank %d failed", ranks.rank)
        say_end(this.folder, f"rank {ranks.rank} failed: {type(error).__name__}: {error}")
        # The first rank to fail knows why; the others fail because it left.
        if not this.run.failed.exists():
            write_atomic(this.run.failed, f"rank {ranks.rank}, attempt {this.number}\n{traceback.format_exc()}")
        raise
    if ranks.first:
        say_end(this.folder, "done")


@contextlib.contextmanager
def apart_is_failure(config: Config) -> Iterator[None]:
    """Write down why ranks did not meet: no attempt has begun that could. Another process's run is left alone."""
    run = RunDir(config.runs_dir / config.name)
    try:
        yield
    except TransientError as error:
        if run.root.is_dir() and not run.lock.exists() and not run.failed.exists():
            write_atomic(run.failed, f"{error}\n")
        raise


def begin(run: RunDir, config: Config, stack: contextlib.ExitStack, device: str) -> tuple[int, str]:
    """Claim and lock the directory, count the attempt, write down what it runs on; rank 0 only.

    Returns: the attempt's number, and what the one before died of, "" where it said so itself.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(run.lock))
    run.claim(config)
    number = run.last_attempt() + 1
    before = died(run, number - 1)
    run.rank_log(number, 0).parent.mkdir(parents=True)
    run.failed.unlink(missing_ok=True)
    write_json(run.environment, environment() | {"device": device})
    return number, before


def kind_of(ranks: Ranks) -> str:
    """Return "cpu", or the name of the GPU that this rank has."""
    return torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"


def died(run: RunDir, number: int) -> str:
    """Say what an attempt died of that could not say so itself, and note it in its folder."""
    folder = run.rank_log(number, 0).parent
    causes = deaths(folder)
    if end_of(folder):  # of a rank that only saw another leave, or ended those that had not died
        causes = [cause for cause in causes if DIED in cause]
    if not causes:
        return ""
    say_end(folder, "; ".join(causes))
    return f"attempt {number}: {'; '.join(causes)}"


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
