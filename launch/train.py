"""Queue a training on Slurm, or run the same job on this machine: python launch/train.py CONFIG [key=value ...]

One command per run: it is continued from its newest checkpoint until DONE is in its directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from dataclasses import dataclass

from kapdist.config import Config, check_limits
from kapdist.config.file import dump_config
from kapdist.run.files import output, write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import RunDir
from launch import jobs, local, slurm
from launch.after import CLUSTER, Start
from launch.call import Call
from launch.cluster import ClusterConfig
from launch.command import command_line, parse, parser_of, submit
from launch.snapshot import describe, snapshot
from launch.submission import Submission, submission


def main() -> None:
    force = "start anew what runs, or run on what is done"
    parser = parser_of("train", __doc__, "YAML file of the training", force)
    parser.add_argument("--local", action="store_true", help="run the job here, without Slurm")
    arguments, config, cluster = parse(parser, Config)
    check_limits(config)
    run = RunDir((config.runs_dir / config.name).absolute())
    if submit(TrainCommand(run, config, cluster, arguments.local), arguments) and arguments.local:
        sys.exit(local.train(run, cluster))


@dataclass(frozen=True)
class TrainCommand:
    """One training to queue, or to run here."""

    directory: RunDir
    config: Config
    cluster: ClusterConfig
    local: bool = False

    def submission(self, code: Path) -> Submission:
        """Return what is submitted, with a snapshot of the code; pure."""
        run = self.directory
        last_word = f"launch.after train {shlex.quote(str(run.root))}"
        return submission(run.name, run.slurm, self.cluster.of("train"), code, last_word, kind="train")

    def dry_run(self) -> str:
        run, code = self.directory, self.directory.code / "1"
        written = [
            f"# {run.config}: the resolved config",
            *(f"#   {line}" for line in dump_config(self.config).splitlines()),
            f"# {run.slurm / CLUSTER}: what is asked of the cluster",
            f"# {describe(code)}",
        ]
        return "\n".join([self.submission(code).script(), *written])

    def is_needed(self, force: bool) -> bool:
        """Say so where the run is done or its job waits or runs; `force` ends that job and sets DONE aside.

        Raises:
            InputError: the run is that of another config, whatever has become of it.
            LockedError: somebody is at work on it by other means.
        """
        run = self.directory
        run.check(self.config)
        living = slurm.alive(line["job"] for line in jobs.remembered(run.slurm) if line["kind"] == "train")
        if living and not force:
            run.check_same(self.config)
            print(f"{run.root}: job {', '.join(living)} waits or runs (--force cancels it and submits another)")
            return False
        if run.done.exists() and not force:
            print(f"{run.root}: done: {run.done.read_text().strip()} (--force runs it on)")
            return False
        slurm.cancel_and_wait(living)
        check_free(run.lock)
        if run.done.exists():
            run.done.rename(run.attempts / str(run.last_attempt()) / "DONE")
        return True

    def prepare(self) -> None:
        """Make the run directory this config's, with what the job reads in it, and forget how earlier ones ended.

        Raises:
            InputError: the directory belongs to another config, or cannot be written.
        """
        run = self.directory
        with output(run.root):
            run.claim(self.config)
            write_atomic(run.slurm / CLUSTER, dump_config(self.cluster))
        Start("train", run.root).ends.forget()
        run.failed.unlink(missing_ok=True)

    def queue(self) -> str:
        """Prepare the run's directory, snapshot the code and submit."""
        run = self.directory
        self.prepare()
        if self.local:
            return ""
        what = self.submission(snapshot(run.code, run.root.parent))
        job = slurm.submit(what, [Call("launch.rank:train", (run.root,))])
        jobs.remember(run.slurm, job, what)
        return f"{run.root}: job {job}"


if __name__ == "__main__":
    command_line(main)
