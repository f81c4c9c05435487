"""One attempt at a run: the lock, the logs, how it ended, DONE or FAILED."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kapdist.config import Config
from kapdist.engine import Ranks
from kapdist.environment import environment
from kapdist.errors import InputError, StoppedError, TransientError
from kapdist.run.ends import DIED, deaths, end_of, fatal_file, say_end, stacks_at_death
from kapdist.run.files import NOT_WRITABLE, check_outputs, output, write_first, write_json
from kapdist.run.lock import POLL_SECONDS, content, locked
from kapdist.run.paths import RunDir

log = logging.getLogger(__name__)

SEEN_SECONDS = 60.0  # as long as a client of a file server may show what was there before (acdirmax in man 5 nfs)


@dataclass(frozen=True)
class Attempt:
    """A run directory and the number of this start of it, from 1."""

    run: RunDir
    number: int

    @property
    def folder(self) -> Path:
        return self.run.rank_log(self.number, 0).parent

    def claim(self, config: Config, ranks: Ranks) -> None:
        """Make the run directory this config's, whose inputs are good; rank 0 only."""
        with output(self.run.root, NOT_WRITABLE):
            self.run.claim(config)
        self.note(self.run.environment, environment() | {"device": kind_of(ranks)})

    def note(self, path: Path, value: Any) -> None:
        """Write down what no later attempt depends on; a full disk does not keep a run from beginning."""
        try:
            write_json(path, value)
        except OSError as error:
            log.warning("%s was not written: %s", path.name, error)


@contextlib.contextmanager
def attempt(config: Config, ranks: Ranks) -> Iterator[Attempt]:
    """Open the run directory for one attempt; what goes wrong inside is written to FAILED.

    Raises:
        InputError: the directory belongs to another config, another process is at work in it, or ranks see others.
    """
    run = RunDir(config.runs_dir / config.name)
    with contextlib.ExitStack() as stack:
        number, before = ranks.from_first(lambda: begin(run, config, stack))
        check_shared(run, ranks)
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
        end = f"rank {ranks.rank} failed: {type(error).__name__}: {error}"
        if isinstance(error, FloatingPointError):  # no fault of a line of code: the message is all there is to say
            log.error("%s", end)
        else:
            log.exception("rank %d failed", ranks.rank)
        say_end(this.folder, end)
        if this.run.last_attempt() == this.number:  # else the run is another's by now
            say_failed(this.run, f"rank {ranks.rank}, attempt {this.number}\n{traceback.format_exc()}")
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
        if run.root.is_dir() and not run.lock.exists():
            say_failed(run, f"{error}\n")
        raise


def say_failed(run: RunDir, reason: str) -> None:
    """Write down why a rank failed: the first knows it, the others fail because it left."""
    try:
        write_first(run.failed, reason)
    except OSError as error:  # a full disk is the reason, or hides it no longer than the log has it
        log.warning("FAILED was not written: %s", error)


def begin(run: RunDir, config: Config, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Lock the directory, see that the config may have it, count the attempt; rank 0 only.

    Returns: the attempt's number, and what the one before died of, "" where it said so itself.
    """
    with output(run.root, NOT_WRITABLE):
        check_outputs(run.lock, refused=NOT_WRITABLE)  # makes the directory
        stack.enter_context(locked(run.lock))
        run.check(config)
        check_outputs(*run.results, run.done, run.latest, refused=NOT_WRITABLE)
        run.drop_leftovers()
        number = run.last_attempt() + 1
        before = died(run, number - 1)
        run.rank_log(number, 0).parent.mkdir(parents=True)
        run.failed.unlink(missing_ok=True)
    return number, before


def check_shared(run: RunDir, ranks: Ranks) -> None:
    """See that all ranks have one run directory before them, by the lock that the first holds in it.

    On a disk of a node's own the others' parts of checkpoints would lie where nobody looks for them.

    Raises:
        InputError: names a host where it is another, or none.
    """
    if ranks.world_size == 1:
        return
    held = ranks.from_first(lambda: content(run.lock))
    ranks.together(lambda: wait_to_see(run, held, ranks))


def wait_to_see(run: RunDir, held: bytes | None, ranks: Ranks) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while seen(run.lock) != held:
        if time.monotonic() > deadline:
            found = f"another, or none, on {socket.gethostname()} (rank {ranks.rank})"
            raise InputError(run.root.absolute(), "a directory that all ranks share (runs_dir)", found)
        time.sleep(POLL_SECONDS)


def seen(lock: Path) -> bytes | None:
    """Return what a lock says as far as this host sees it."""
    with contextlib.suppress(OSError):
        return content(lock)
    return None


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
    handlers: list[logging.Handler] = [LogFile(run.rank_log(number, ranks.rank))]
    if ranks.first:
        handlers.append(logging.StreamHandler(sys.stderr))
    logger = logging.getLogger("kapdist")
    level, propagate = logger.level, logger.propagate
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
        logger.setLevel(level)
        logger.propagate = propagate


class LogFile(logging.FileHandler):
    """A log that ends nothing: what a full disk does not take is lost, and standard error says so once."""

    full = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")  # whatever the user's locale is

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        with contextlib.suppress(OSError):
            if not self.full:
                print(f"kapdist: {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)
        self.full = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
