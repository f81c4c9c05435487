"""The same job on this machine, without Slurm: its ranks, their restarts, its last word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kapdist.errors import RESUME
from kapdist.run.asked import heard
from kapdist.run.ends import killed_by
from kapdist.run.files import output
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir
from launch.after import Start, conclude
from launch.cluster import ClusterConfig

POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0


def train(run: RunDir, cluster: ClusterConfig) -> int:
    """Start all ranks here, again after failures as on a cluster; return the exit code.

    Ctrl-C, TERM and HUP are passed on to the ranks, which save; the run is then left as it is, to be continued.

    Raises:
        LockedError: another process starts the ranks of this run.
    """
    with output(run.root), locked(run.launcher):
        return start_until_ended(LocalJob(run, cluster))


def start_until_ended(job: LocalJob) -> int:
    while True:
        code = job.start_once()
        if job.asked:
            return 0 if job.run.done.exists() else code or RESUME
        what, _ = conclude(Start("train", job.run.root), code, job.cluster)
        if what != "again":
            return 0 if what == "done" else code or 1


class LocalJob:
    """The ranks of one run on this machine."""

    def __init__(self, run: RunDir, cluster: ClusterConfig) -> None:
        self.run, self.cluster = run, cluster
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.asked = 0
        self.starts = 0

    def start_once(self) -> int:
        """Run the ranks until all have ended; a rank that fails ends the others. Returns the largest code."""
        self.starts += 1
        meeting = self.run.slurm / f"rendezvous-{os.getpid()}.{self.starts}.json"
        meeting.parent.mkdir(parents=True, exist_ok=True)
        meeting.unlink(missing_ok=True)  # of one that was killed and had this process's number
        ranks = self.ranks = []
        before = {n: signal.signal(n, self.pass_on) for n in heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            for number in range(self.cluster.ranks):
                ranks.append(self.start(number, meeting))
            if self.asked:  # before all of them were there
                self.pass_on(self.asked, None)
            return self.wait(ranks)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()
            meeting.unlink(missing_ok=True)

    def start(self, rank: int, meeting: Path) -> subprocess.Popen[bytes]:
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.cluster.ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(self.cluster.ranks),
            "KAPDIST_RENDEZVOUS": str(meeting),
            "PYTHONPATH": os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")])),
        }
        environment = os.environ | self.cluster.environment | variables
        script = Path(sys.path[0]) / "launch" / "module.py"
        command = [self.cluster.python or sys.executable, str(script), "-m", "launch.rank", str(self.run.root)]
        # A session of its own: Ctrl-C of the terminal comes once, from here.
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def wait(self, ranks: list[subprocess.Popen[bytes]]) -> int:
        """Wait for all; after the first that ends badly the others get the grace that Slurm would give."""
        deadline = float("inf")
        while any(rank.poll() is None for rank in ranks):
            if deadline == float("inf") and any(rank.poll() for rank in ranks):
                deadline = time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        codes = [rank.poll() for rank in ranks]
        print_deaths(codes)
        return max(1 if code is None else code if code >= 0 else 128 - code for code in codes)


def print_deaths(codes: Sequence[int | None]) -> None:
    """Name the ranks on this machine that a signal ended."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            print(f"kapdist: rank {rank} died of {killed_by(code)}", file=sys.stderr, flush=True)
