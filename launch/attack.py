"""Queue an attack on Slurm: a plan, arrays of shards, an aggregation that repeats what is missing.

python launch/attack.py RUN CONFIG [key=value ...]; submitting it again runs the missing shards only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kapdist.config import AttackConfig
from kapdist.config.file import dump_config
from kapdist.errors import InputError
from kapdist.records.sharding import missing_shards, num_chunks
from kapdist.run.files import last_number, output, write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import AttackDir, RunDir
from launch import jobs
from launch.after import CLUSTER
from launch.array import AttackJobs, folders_of
from launch.call import Call
from launch.cluster import ClusterConfig
from launch.command import command_line, parse, parser_of, submit
from launch.planned import ATTACK, is_planned, refuse_another
from launch.snapshot import describe, snapshot
from launch.status.training import trainer
from launch.submission import Submission


def main() -> None:
    force = "cancel what waits or runs, submit what is missing, and merge anew what is merged"
    run = "run directory; with model.factory=, any directory"
    parser = parser_of("attack", __doc__, "YAML file of the attack", force, run)
    arguments, config, cluster = parse(parser, AttackConfig)
    command = AttackCommand(RunDir(arguments.run.absolute()), config, cluster)
    if config.model.factory is None:
        command.run.load_config()  # a directory that is no run is refused before anything is written
    refuse_another(command.directory, config)
    submit(command, arguments)


@dataclass(frozen=True)
class AttackCommand:
    """One attack to queue."""

    run: RunDir
    config: AttackConfig
    cluster: ClusterConfig
    training: str = ""
    """What --dry-run calls the job that trains the run, where none does yet."""

    @property
    def directory(self) -> AttackDir:
        return self.run.attack(self.config.name)

    @property
    def touched(self) -> list[AttackDir]:
        return [self.directory]

    def jobs(self, code: Path, trainings: Sequence[str]) -> AttackJobs:
        folders = folders_of(self.run, self.config)
        return AttackJobs(self.run, self.directory, self.cluster, code, trainings, folders)

    def dry_run(self) -> str:
        """Return the scripts of the plan, the arrays and the aggregation, and write nothing."""
        code = self.directory.code / "1"
        trainings = [self.training] if self.training else trainings_to_wait_for(self.run, self.config)
        planned = is_planned(self.directory, self.config) and not trainings
        scripts: list[str] = []

        def keep(what: Submission, calls: Sequence[Call]) -> str:
            scripts.append(what.script())
            return str(what.about["kind"]).upper()

        self.jobs(code, trainings).each(*self.shards_to_run(planned), keep, with_plan=not planned)
        written = f"# {self.directory.slurm / ATTACK}: the resolved config\n# {describe(code)}"
        return "\n\n".join([*scripts, written])

    def is_needed(self, force: bool) -> bool:
        """Say so where the attack is merged or its jobs wait or run; `force` cancels those."""
        attack = self.directory
        if attack.summary.exists() and not force:
            print(f"{attack.root}: done: {attack.summary} (--force merges it anew)")
            return False
        lines = jobs.remembered(attack.slurm)
        living = jobs.living(lines)
        if living and not force and not jobs.cut_off(lines, living, "aggregate"):
            print(f"{attack.root}: job {', '.join(living)} waits or runs (--force cancels it and submits the rest)")
            return False
        jobs.cancel(attack.slurm, living)
        check_free(attack.lock)
        return True

    def queue(self, force: bool = False) -> str:
        """Submit all jobs of the attack; a summary that is there is set aside."""
        attack, trainings = self.directory, trainings_to_wait_for(self.run, self.config)
        with summary_set_aside(attack):
            planned = is_planned(attack, self.config) and not trainings
            self.prepare()
            shards, num_shards = self.shards_to_run(planned)
            queued = self.jobs(snapshot(attack.code, self.run.root.parent), trainings)
            return queued.submit(shards, num_shards, with_plan=not planned)

    def prepare(self) -> None:
        """Write what the jobs read, and forget how earlier ones ended; no chunk is touched.

        Raises:
            InputError: the directory cannot be written.
        """
        attack = self.directory
        with output(attack.root):
            write_atomic(attack.slurm / ATTACK, dump_config(self.config))
            write_atomic(attack.slurm / CLUSTER, dump_config(self.cluster))
            for name in ("ends", "failed"):
                shutil.rmtree(attack.slurm / name, ignore_errors=True)
            attack.failed.unlink(missing_ok=True)

    def shards_to_run(self, planned: bool) -> tuple[list[int], int]:
        """Return (shards that lack a chunk, number of shards): never more shards than chunks."""
        if planned:
            total = min(self.cluster.shards, num_chunks(self.directory))
            return list(missing_shards(self.directory, total)) or [0], total
        asked = self.config.num_asked(None)
        chunks = -(-asked // self.config.rows_of_a_chunk) if asked else self.cluster.shards
        total = min(self.cluster.shards, chunks)
        return list(range(total)), total


def trainings_to_wait_for(run: RunDir, config: AttackConfig) -> list[str]:
    """Return the jobs that still train a model of this attack.

    Raises:
        InputError: a run has no weights and nobody trains it, or somebody does whom no job can wait for.
    """
    own = [] if config.model.factory or config.model.weights else [run]
    transferred = [RunDir(it.run.absolute()) for it in config.transfer_from if it.run and not it.weights]
    return [job for needed in (*own, *transferred) for job in trainings_of(needed)]


def trainings_of(run: RunDir) -> list[str]:
    run.load_config()
    if run.done.exists():
        return []
    if living := jobs.training_jobs(run):
        return living
    if worker := trainer(run, seen_elsewhere=False):
        raise InputError(run.root, "a run that is done, or whose training is a job to wait for", worker)
    if not run.weights.exists():
        raise InputError(run.root, "a run that is done, or in Slurm's queue", f"no {run.weights.name}")
    return []


@contextlib.contextmanager
def summary_set_aside(attack: AttackDir) -> Iterator[None]:
    """Move report and summary, which say that all is done, to slurm/merged/<n>; back if nothing is queued."""
    aside = attack.slurm / "merged" / str(1 + last_number(attack.slurm / "merged"))
    # The summary last: without it, an old report would be taken for that of the next.
    places = [attack.root / "report", attack.summary] if attack.summary.exists() else []
    moved: list[Path] = []
    try:
        for place in filter(Path.exists, places):
            aside.mkdir(parents=True, exist_ok=True)
            moved.append(place.rename(aside / place.name))
        yield
    except BaseException:
        for kept in moved:
            kept.rename(attack.root / kept.name)
        if moved:
            aside.rmdir()
        raise


if __name__ == "__main__":
    command_line(main)
