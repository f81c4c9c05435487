"""Starts the processes that tell trackers; whoever starts them never waits longer than a set time."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kapdist.config import TrainConfig
from kapdist.errors import InputError, StoppedError
from kapdist.records.tracked import read_tracked
from kapdist.run.paths import RunDir
from kapdist.tracking.trackers import TRACKERS, asked, begin, known

log = logging.getLogger(__name__)


class Sender:
    """A process that tells one tracker of one run; what it has to say goes to the log."""

    def __init__(self, run: RunDir, name: str, pages: Sequence[Path] = ()) -> None:
        self.run, self.title = run, TRACKERS[name].title
        self.seconds = read_tracked(run.tracked(name)).seconds
        # This process may be told of something else by Weights & Biases, and leave that open.
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        command = [sys.executable, "-m", "kapdist.tracking", name, str(run.root), *map(str, pages)]
        with run.tracked(name).with_suffix(".log").open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
                start_new_session=True,  # it ends itself, and all that its tracker has started
            )
        self.level, self.given_up = logging.INFO, False  # of what was said last
        self.said = threading.Thread(target=self.pass_on, daemon=True)
        self.said.start()

    def pass_on(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            level, _, text = line.rstrip().partition(" ")
            self.level = int(level)
            if not self.given_up:
                log.log(self.level, "%s: %s", self.title, text)

    def end(self, how: str) -> None:
        """Say how the work ended; the process has `seconds` from now on."""
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it has died: `wait` says so
            self.process.stdin.write(f"{how}\n")
            self.process.stdin.close()

    def wait(self, deadline: float) -> bool:
        """Return whether the tracker was told all, or by a deadline has not been; it is said which."""
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
            self.said.join(1)
        except subprocess.TimeoutExpired:
            code, self.given_up = None, True
        if code != 0 and self.level < logging.WARNING:  # else it has said why itself
            how = f"took not all in {self.seconds:g} s" if code in (None, -9) else f"its process ended with {code}"
            log.warning("%s: %s; %s", self.title, how, remedy(self.run))
        return code == 0


def remedy(run: RunDir) -> str:
    return f"`kapdist track {run.root}` tells it what it lacks"


@contextlib.contextmanager
def followed(run: RunDir, train: TrainConfig, step: int, active: bool) -> Iterator[None]:
    """Let the trackers that a config names follow a training that goes on after a step; on rank 0 alone."""
    senders = list(started(run, train, step)) if active else []
    how = "failed"
    try:
        yield
        how = "done"
    except (StoppedError, KeyboardInterrupt):
        how = "stopped"
        raise
    finally:
        for sender in senders:
            sender.end(how)
        if how != "stopped":  # who is asked to stop has no time left; the next attempt tells the rest
            wait_for(senders)


def started(run: RunDir, train: TrainConfig, step: int) -> Iterator[Sender]:
    """Start a process for each tracker; what keeps one from starting ends no training."""
    for name in asked(train):
        try:
            begin(run, name, train, step)
            yield Sender(run, name)
        except (OSError, InputError) as error:
            log.warning("%s is not told of this attempt: %s", TRACKERS[name].title, error)


def wait_for(senders: Sequence[Sender]) -> bool:
    start = time.monotonic()
    ends = [sender.wait(start + sender.seconds) for sender in senders]
    return all(ends)


def tell(runs: Sequence[Path], pages: Sequence[Path] = ()) -> bool:
    """Tell the trackers of runs, those that know them, what was found since; return whether they took it.

    Args:
        pages: reports that the runs are part of.
    """
    senders, whole = [], True
    for run, name in ((place, name) for place in map(RunDir, runs) for name in known(place)):
        try:
            senders.append(Sender(run, name, pages))
        except (OSError, InputError) as error:
            log.warning("%s is not told: %s", TRACKERS[name].title, error)
            whole = False
    for sender in senders:
        sender.end("done" if sender.run.done.exists() else "stopped")
    return wait_for(senders) and whole
