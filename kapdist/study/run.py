"""A study on one machine: what is missing, as many commands at once as it bears; may be killed and run again."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kapdist.attack.devices import own_gpu
from kapdist.attack.units import end
from kapdist.environment import usable_cpus
from kapdist.errors import RESUME, InputError, LockedError, TransientError
from kapdist.run.asked import ended_by_sigterm, started_here
from kapdist.run.files import check_outputs, write_atomic
from kapdist.run.lock import is_alive, locked, other_at_work
from kapdist.run.progress import Progress
from kapdist.study.design import Design
from kapdist.study.frozen import freeze
from kapdist.study.machine import planned_elsewhere, set_aside, words_here
from kapdist.study.tasks import SANITY, TRAINING, Task, failure_of, log_of, run_dir, tasks, write_configs

POLL_SECONDS = 0.2


def run_study(design: Design) -> None:
    """Do all that is missing of a study.

    Raises:
        InputError: the directory holds another study, or somebody is at work in it.
        TransientError: commands failed as often as `retries` allows; all others were done.
    """
    check_data(design)
    check_outputs(design.dir.lock)
    with locked(design.dir.lock):
        freeze(design)
        write_configs(design)
        do(design, tasks(design))


def check_data(design: Design) -> None:
    """Refuse to begin where no training of all that are left has its images; one arm alone may want for them.

    Raises:
        InputError: names the first beton that is not there.
    """
    places = [run.config.data.train for run in design.trained if not run_dir(design, run).done.exists()]
    if places and not any(place.exists() for place in places):
        raise InputError(places[0], "a beton (kapdist data write)", "no such file")


def ask_of(design: Design, name: str, without: Collection[str] = ()) -> None:
    """Do what is missing of all that is asked of one trained model; other processes may ask others meanwhile.

    Raises:
        InputError: the model is not trained.
        TransientError: as `run_study`.
    """
    place = design.dir.run(name)
    if not place.done.exists():
        raise InputError(place.root, "a run that is done", "none")
    do(design, [task for task in tasks(design) if task.run.name == name and task.kind not in without])


def do(design: Design, wanted: Sequence[Task]) -> None:
    queue = Queue(design, list(wanted))
    with ended_by_sigterm(), Progress(design.config.name, unit="commands") as progress, queue.ended():
        queue.work(progress)
    queue.check()


@dataclass
class Queue:
    """The commands of a study: done, running, given up, or still to do."""

    design: Design
    tasks: list[Task]
    running: dict[int, tuple[Task, subprocess.Popen[bytes]]] = field(default_factory=dict)
    """By slot."""
    failures: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Commands that are not begun here, and why."""

    @functools.cached_property
    def at_once(self) -> int:
        """As said, or as many as GPUs: attacks that share one wait for one another. 0 where there is neither."""
        return self.design.config.at_once or num_gpus()

    @property
    def slots(self) -> int:
        return self.at_once or max(1, usable_cpus() // max(1, self.threads))

    @property
    def threads(self) -> int:
        """CPUs of each command, where its training does not say."""
        asked = self.design.trained[0].config.engine.threads
        return asked or (usable_cpus(self.at_once) if self.at_once else 1)

    @property
    def given_up(self) -> list[Task]:
        most = self.design.config.retries
        return [task for task in self.tasks if self.failures.get(task.name, 0) > most]

    def check(self) -> None:
        """Raise TransientError for what was given up or left."""
        if self.given_up:
            first = self.given_up[0]
            found = f"{len(self.given_up)} of {len(self.tasks)} commands failed, {first.name} first"
            raise TransientError(f"{self.design.root}: {found} (see {log_of(self.design, first)})")
        if left := [task.name for task in self.tasks if task.name in self.left and not task.done]:
            found = f"{len(left)} of {len(self.tasks)} commands were left, {left[0]} first"
            raise TransientError(f"{self.design.root}: {found}: {self.left[left[0]]}")

    def work(self, progress: Progress) -> None:
        """Start and reap until nothing is left that could be done."""
        while True:
            self.reap()
            waiting = self.start_what_fits()
            progress.show(sum(task.done for task in self.tasks), self.in_words(), total=len(self.tasks))
            if not self.running and not waiting:
                return
            time.sleep(POLL_SECONDS)

    def in_words(self) -> str:
        words = ", ".join(task.name for task, _ in self.running.values())
        failed = len(self.given_up)
        return words + (f"; {failed} failed" if failed else "")

    def reap(self) -> None:
        for slot, (task, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[slot]
            if code != RESUME and not (code == 0 and task.done):
                self.failures[task.name] = self.failures.get(task.name, 0) + 1
                log = log_of(self.design, task)
                why = last_line(log)
                print(f"{task.name}: exit code {code}, see {log}: {why}", file=sys.stderr, flush=True)
                if self.failures[task.name] > self.design.config.retries:
                    write_atomic(failure_of(self.design, task), f"{why}\n")

    def start_what_fits(self) -> bool:
        """Fill free slots; return whether something only waits for somebody else who is at work on it."""
        given_up = {task.name for task in self.given_up}
        at_work = {task.name for task, _ in self.running.values()}
        held = False
        for task in self.tasks:
            if len(self.running) >= self.slots:
                break
            if task.done or task.name in given_up | at_work or not task.can_begin:
                continue
            if (other := other_at_work(task.lock)) and is_alive(other):
                held = True
            elif other:  # nobody could wait for its end
                self.left[task.name] = f"{other} may be at work on it (remove {task.lock} if that process is gone)"
            elif self.fits_here(task):
                self.left.pop(task.name, None)
                self.start(task)
        return held

    def fits_here(self, task: Task) -> bool:
        """Whether a command can go on on this machine; what another machine began and did not end is begun anew."""
        if not (planned := planned_elsewhere(task)):
            return True
        if task.kind == SANITY:  # it examines the attack as it was made
            self.left[task.name] = f"it takes {planned}, with which its attack was made"
            return False
        try:
            kept = set_aside(self.design, task)
        except LockedError as error:  # since we looked
            self.left[task.name] = str(error)
            return False
        print(
            f"{task.name}: begun with {planned}, begins anew here; {kept} keeps that", file=sys.stderr, flush=True
        )
        return True

    def start(self, task: Task) -> None:
        slot = min(set(range(self.slots)) - self.running.keys())
        log = log_of(self.design, task)
        log.parent.mkdir(parents=True, exist_ok=True)
        failure_of(self.design, task).unlink(missing_ok=True)
        words = words_here(self.design, task)
        if task.kind == TRAINING:
            words = (*words, f"engine.threads={self.threads}")
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)} | own_gpu_of(slot) | started_here()
        command = [sys.executable, "-m", "kapdist.study.task", *words]
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        self.running[slot] = task, process

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Ask what still runs to stop, whatever ends the study; trainings save."""
        try:
            yield
        finally:
            end([process for _, process in self.running.values()])


def own_gpu_of(slot: int) -> dict[str, str]:
    """Return the variables that give a slot one GPU of this machine, where there are any."""
    import torch

    if not (number := num_gpus()):
        return {}
    return own_gpu(torch.cuda.get_device_name(slot % number), slot)


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def last_line(log: Path) -> str:
    """Return the last line of a command's log, which says why it failed."""
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1].removeprefix("kapdist: ")[:300] if lines else "nothing is in it"
