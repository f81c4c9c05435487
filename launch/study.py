"""Queue all that is missing of a study on Slurm: python launch/study.py STUDY.yaml [key=value ...]

Trainings are one array; behind each element all that is asked of its model, an array too; behind all the page.
Whatever of it fails, the others go on; submitting it again queues what is missing only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kapdist.config.file import dump_config
from kapdist.records.study import read_frozen
from kapdist.run.files import output, write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import RunDir, StudyDir
from kapdist.study.design import Design, check_size, make_design
from kapdist.study.frozen import as_frozen, freeze
from kapdist.study.settings import Trained
from kapdist.study.tasks import ATTACK, TRAINING, failure_of, tasks, tasks_of, write_configs
from launch import jobs, journal, slurm
from launch.after import CLUSTER, Start
from launch.attack import AttackCommand
from launch.call import Call
from launch.cluster import ClusterConfig, load_cluster, split_words
from launch.command import command_line, parser_of, submit
from launch.snapshot import describe, snapshot
from launch.study_jobs import Behind, StudyJobs
from launch.train import TrainCommand


def main() -> None:
    force = "cancel the study's jobs and queue what is missing"
    parser = parser_of("study", __doc__, "YAML file of the study", force)
    parser.add_argument("--yes", action="store_true", help="also where that is more than most_runs trainings")
    arguments = parser.parse_intermixed_args()
    words, cluster_words = split_words(arguments.words)
    design = make_design(arguments.config, words)
    check_size(arguments.config, design, arguments.yes)
    submit(StudyCommand(design, load_cluster(arguments.cluster, cluster_words)), arguments)


@dataclass(frozen=True)
class StudyCommand:
    """One study to queue."""

    design: Design
    cluster: ClusterConfig

    @property
    def directory(self) -> StudyDir:
        return StudyDir(self.design.root.absolute())

    @property
    def touched(self) -> list[RunDir | StudyDir]:
        return [self.directory, *self.runs(self.missing())]

    def runs(self, chosen: Iterable[Trained]) -> list[RunDir]:
        return [self.directory.run(run.name) for run in chosen]

    @property
    def sharded(self) -> bool:
        """Whether each attack has jobs of its own: its plan, its shards, its aggregation."""
        return self.cluster.shards > 1

    def jobs(self, code: Path) -> StudyJobs:
        return StudyJobs(self.directory, self.cluster, code, [run.config for run in self.design.trained])

    def missing(self) -> list[Trained]:
        names = {task.run.name for task in tasks(self.design) if not task.done}
        return [run for run in self.design.trained if run.name in names]

    def has_grown(self) -> bool:
        """Whether the page has nothing yet of what the file says by now, a claim of what is there already.

        Raises:
            InputError: as `freeze`.
        """
        return as_frozen(self.design) != read_frozen(self.directory.frozen)

    def dry_run(self) -> str:
        """Return the scripts of the arrays and of the last job."""
        code = self.directory.code / "1"
        queued = self.jobs(code)
        untrained = [run for run in self.runs(self.missing()) if not run.done.exists()]
        trained = [run for run in self.runs(self.missing()) if run.done.exists()]
        scripts = [queued.trainings(piece).script() for piece in queued.pieces(untrained)]
        scripts += [queued.models(Behind(piece, "TRAIN")).script() for piece in queued.pieces(untrained)]
        scripts += [queued.models(Behind(piece)).script() for piece in queued.pieces(trained)]
        attacks = len([task for task in tasks(self.design) if task.kind == ATTACK and not task.done])
        own = [f"# and {attacks} attacks with jobs of their own (launch/attack.py)"] if self.sharded else []
        return "\n\n".join([*scripts, queued.page([]).script(), *own, f"# {describe(code)}"])

    def is_needed(self, force: bool) -> bool:
        """Say so where all is done, or jobs of the study wait or run; `force` cancels those."""
        place = self.directory
        if place.finished.exists() and not self.missing() and not self.has_grown() and not force:
            print(f"{place.root}: done: {place.page} (--force writes the page anew)")
            return False
        lines = jobs.remembered(place.slurm)
        living = jobs.living(lines)
        if living and not force:
            if not jobs.cut_off(lines, living, "study"):
                print(
                    f"{place.root}: job {', '.join(living)} waits or runs (--force cancels it and queues the rest)"
                )
                return False
            living = [line["job"] for line in lines if line["job"] in living and line["kind"] != "train"]
        jobs.cancel(place.slurm, living)
        check_free(place.lock)
        return True

    def queue(self, force: bool = False) -> str:
        """Queue what is missing: trainings, what is asked of each model behind its own, the page behind all."""
        place = self.directory
        for path in (place.finished, place.failed):  # before it grows: killed in between, it is not done
            path.unlink(missing_ok=True)
        with output(place.root):
            freeze(self.design)
            write_configs(self.design)
            write_atomic(place.slurm / CLUSTER, dump_config(self.cluster))
        Start("study", place.root).ends.forget()
        missing = self.missing()
        for run in missing:
            self.prepare(run)
        queued = self.jobs(snapshot(place.code, place.root.parent))
        before = [job for behind in self.trained_by(missing, queued) for job in self.asked(behind, queued)]
        last = queued.queue(queued.page(before), [Call("launch.rank:finish_study", (place.config,))])
        return f"{place.root}: {len(missing)} models in job {', '.join(before) or 'none'}, then job {last}"

    def prepare(self, run: Trained) -> None:
        """Write what the jobs of a model read, and forget how earlier ones ended."""
        place = self.directory.run(run.name)
        if not place.done.exists() and not jobs.training_jobs(place):
            check_free(place.lock)
            TrainCommand(place, run.config, self.cluster).prepare()
        write_atomic(place.slurm / CLUSTER, dump_config(self.cluster))
        Start("model", place.root).ends.forget()
        given_up = [failure_of(self.design, task) for task in tasks_of(self.design, run)]
        for path in (place.asked, place.not_asked, *given_up):
            path.unlink(missing_ok=True)

    def trained_by(self, missing: Sequence[Trained], queued: StudyJobs) -> Iterator[Behind]:
        """Queue the trainings; yield the models by what they wait for."""
        places = self.runs(missing)
        trained = [run for run in places if run.done.exists()]
        by_others = {run: found[-1] for run in places if run not in trained and (found := jobs.training_jobs(run))}
        for piece in queued.pieces([run for run in places if run not in trained and run not in by_others]):
            yield Behind(piece, queued.train(piece))
        yield from (Behind([run], job) for run, job in by_others.items())
        yield from map(Behind, queued.pieces(trained))

    def asked(self, behind: Behind, queued: StudyJobs) -> list[str]:
        """Queue what is asked of some models; return the jobs that the page waits for."""
        without = (TRAINING, ATTACK) if self.sharded else (TRAINING,)
        if self.sharded:
            behind = replace(behind, attacks=[job for run in behind.runs for job in self.attacks_on(run)])
        left = {task.run.name for task in tasks(self.design) if task.kind not in without and not task.done}
        if not left & {run.name for run in behind.runs}:
            return [*filter(None, [behind.trainings]), *behind.attacks]
        calls = [Call("launch.rank:ask_model", (self.directory.config, run.name, without)) for run in behind.runs]
        return [queued.queue(queued.models(behind), calls, behind.runs)]

    def attacks_on(self, run: RunDir) -> Iterator[str]:
        """Queue the attacks on a run that are missing, each with jobs of its own; yield the last job of each."""
        possible = run.done.exists() or jobs.training_jobs(run)  # of what has failed meanwhile there is no attack
        for task in tasks(self.design) if possible else ():
            if task.run.name == run.name and task.kind == ATTACK:
                command = AttackCommand(run, self.design.attacks[task.attack].config, self.cluster)
                with slurm.submitting(command.directory.slurm):
                    journal.settle(command.directory.slurm)
                    if command.is_needed(force=False):
                        command.queue()
                yield from jobs.living(jobs.remembered(command.directory.slurm)[-1:])


if __name__ == "__main__":
    command_line(main)
