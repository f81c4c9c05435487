"""Heartbeats of the ranks, and a watchdog that names the one that stopped.

Every rank writes its step and how long it has been idle to a file of its own. One rank of each node reads all of
them, the others that one alone: on a shared file system every read is a question to a server. A reader counts how
long a file has stayed as it is, so no clock of another host, nor a clock that is set, has a say; and it counts the
time in which it was awake: a job that Slurm or a user suspends has not stopped by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from kapdist.engine import Ranks
from kapdist.errors import InputError, StoppedError
from kapdist.run.ends import cause_in, fatal_file, say_end
from kapdist.run.files import to_json, write_atomic

log = logging.getLogger(__name__)

SLOWEST_BEAT_SECONDS = 5.0
LONGEST_LOOK = 2  # intervals between two looks; what is beyond it this process did not live through


class Awake:
    """The seconds in which this process was awake, told by a clock that somebody looks at every few seconds.

    While a process is stopped (SIGSTOP, `scontrol suspend`) or its machine sleeps nobody looks: of such a gap
    `longest` seconds count. Any thread may look.
    """

    def __init__(self, longest: float) -> None:
        self.longest, self.total, self.looked = longest, 0.0, time.monotonic()
        self.one_at_a_time = threading.Lock()

    def seconds(self) -> float:
        with self.one_at_a_time:
            now = time.monotonic()
            self.total += min(now - self.looked, self.longest)
            self.looked = now
            return self.total


class Watchdog:
    """A thread that ends the process when a rank made no progress for too long.

    Args:
        folder: of this attempt; the heartbeats are `heartbeat-<rank>.json` in it.
        limit_seconds: longest time without progress of any rank.
        failed: file that is written before the process ends.
    """

    def __init__(self, folder: Path, ranks: Ranks, limit_seconds: float, failed: Path) -> None:
        self.folder, self.ranks, self.limit_seconds, self.failed = folder, ranks, limit_seconds, failed
        self.interval = min(SLOWEST_BEAT_SECONDS, limit_seconds / 4)
        self.awake = Awake(LONGEST_LOOK * self.interval)
        self.step, self.progressed = 0, self.awake.seconds()
        self.first, self.began = 0, time.monotonic()
        self.seen: dict[int, tuple[int, float]] = {}
        """Of each rank that is watched: the time stamp of its heartbeat, and since when it is that one."""
        self.came_through = True
        """Whether this rank's last heartbeat came through; where it did not, the others' do not either."""
        self.reader = ranks.rank - ranks.local_rank
        self.verdict = ""
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="kapdist-watchdog")

    def __enter__(self) -> Watchdog:
        self.write()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception) and not isinstance(error, InputError | StoppedError)
        if failed and self.ranks.world_size > 1:
            self.name_the_gone()
        self.ended.set()
        self.thread.join(self.interval + 5)
        self.write()  # how long it was

    def beat(self, step: int) -> None:
        """Say that this rank has made progress: a step, a batch of an evaluation, a file."""
        self.step, self.progressed = step, self.awake.seconds()
        self.first = self.first or step

    def rest(self) -> None:
        """Look no more: the run is done, and what this rank still waits for has a limit of its own."""
        self.ended.set()

    def path(self, rank: int) -> Path:
        return self.folder / f"heartbeat-{rank}.json"

    def write(self) -> None:
        """Renew this rank's heartbeat: whole, but not flushed to the disk, as it is worth nothing after a crash."""
        idle = self.awake.seconds() - self.progressed
        path = self.path(self.ranks.rank)
        aside = path.with_name(f".{path.name}.tmp")
        lived = {"first_step": self.first, "seconds": round(time.monotonic() - self.began, 1)}
        beat = {"step": self.step, "idle_seconds": round(idle, 1)} | lived
        self.came_through = False
        try:
            aside.write_text(to_json(beat | ({"stuck": self.verdict} if self.verdict else {})))
            os.replace(aside, path)
            self.came_through = True
        except OSError:  # a full disk: the old beat with a new time is a sign of life too
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                os.utime(path)
                self.came_through = True

    def watch(self) -> None:
        troubled = False
        while not self.ended.wait(self.interval):
            try:
                self.look()
            except Exception:  # whatever it is, the next look may be better; a dead watchdog watches nothing
                if not troubled:
                    log.exception("rank %d: the watchdog cannot look; it goes on trying", self.ranks.rank)
                troubled = True

    def look(self) -> None:
        self.write()
        stuck = self.stuck()
        if stuck:
            self.end(stuck)

    @property
    def watched(self) -> Iterable[int]:
        """The ranks whose heartbeats this one reads."""
        return range(self.ranks.world_size) if self.ranks.rank == self.reader else (self.reader, self.ranks.rank)

    def stuck(self) -> list[str]:
        """Describe the ranks without progress within the limit; those that wait for them are stuck later."""
        found = []
        for rank in self.watched:
            try:
                silent = self.silent(rank)
                beat = json.loads(self.path(rank).read_text())
            except (OSError, ValueError):
                continue  # it has not begun; the rendezvous has a limit of its own
            if beat.get("stuck") and rank != self.ranks.rank:
                return [beat["stuck"]]
            if silent > self.limit_seconds:
                found.append(f"rank {rank} gave no sign of life for {silent:.0f} s, at step {beat['step']}")
            elif silent + beat["idle_seconds"] > self.limit_seconds:
                idle = silent + beat["idle_seconds"]
                found.append(f"rank {rank} made no progress for {idle:.0f} s, at step {beat['step']}")
        return found

    def silent(self, rank: int) -> float:
        """Return the seconds for which a rank's heartbeat has been the one that it is."""
        stamp, now = self.path(rank).stat().st_mtime_ns, self.awake.seconds()
        if not self.came_through or self.seen.get(rank, (0, now))[0] != stamp:
            self.seen[rank] = stamp, now
        return now - self.seen[rank][1]

    def name_the_gone(self) -> None:
        """After an error: a rank that died is the reason, and this rank's error only says that a peer left."""
        others = [rank for rank in range(self.ranks.world_size) if rank != self.ranks.rank]
        before = {rank: self.written(rank) for rank in others}
        time.sleep(2 * self.interval + 0.5)
        gone = [rank for rank in others if before[rank] and self.written(rank) == before[rank]]
        if gone:
            reason = f"rank {', '.join(map(str, gone))} is gone: no sign of life since this rank's error"
            died = [
                f"rank {rank} died of {cause}"
                for rank in gone
                if (cause := cause_in(fatal_file(self.folder, rank)))
            ]
            reason = "; ".join([*died, reason])
            log.error(reason)
            write_atomic(self.failed, reason + "\n")

    def written(self, rank: int) -> float:
        """Return when a rank last wrote its heartbeat, 0 if it never did or said good-bye."""
        return self.path(rank).stat().st_mtime if self.path(rank).exists() else 0.0

    def end(self, stuck: list[str]) -> None:
        """Say who stopped, where this rank is, and leave: what waits in a collective cannot be woken."""
        silent = [line for line in stuck if "sign of life" in line]
        reason = "; ".join(silent or stuck)
        log.error("%s; the limit is train.stall_minutes", reason)
        try:
            if self.ranks.first or not self.failed.exists():
                write_atomic(self.failed, f"{reason}\n")
            with (self.folder / f"stacks-{self.ranks.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if self.ranks.rank == self.reader and self.ranks.local_world_size > 1:
                self.verdict = reason
                self.write()
                time.sleep(2 * self.interval)  # the others of the node read it, and leave their stacks
            say_end(self.folder, reason)
            fatal_file(self.folder, self.ranks.rank).unlink(missing_ok=True)
        finally:
            os._exit(1)
