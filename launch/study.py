"""Queue all that is missing of a study on Slurm: python launch/study.py STUDY.yaml [key=value ...]

Trainings, the attacks behind each, and behind all of them one job for the rest: sanity, topography, the page.
Whatever of it fails, the others go on; submitting it again queues what is missing only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from kapdist.config.file import dump_config
from kapdist.run.files import output, write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import StudyDir
from kapdist.study.design import Design, check_size, make_design
from kapdist.study.frozen import freeze
from kapdist.study.tasks import ATTACK, tasks, write_configs
from launch import jobs, slurm
from launch.after import CLUSTER, Start
from launch.attack import AttackCommand
from launch.call import Call
from launch.cluster import ClusterConfig, load_cluster, split_words
from launch.command import command_line, parser_of, submit
from launch.snapshot import describe, snapshot
from launch.submission import Submission, submission
from launch.train import TrainCommand


def main() -> None:
    parser = parser_of("study", __doc__, "YAML file of the study", "cancel the study's last job and queue it anew")
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

    def commands(self) -> Iterator[tuple[TrainCommand, list[AttackCommand]]]:
        """Yield each training and the attacks on it, whether they are done or not."""
        every = tasks(self.design)
        for run in self.design.trained:
            place = self.directory.run(run.name)
            own = [task.attack for task in every if task.run is run and task.kind == ATTACK]
            attacks = [AttackCommand(place, self.design.attacks[name].config, self.cluster) for name in own]
            yield TrainCommand(place, run.config, self.cluster), attacks

    def dry_run(self) -> str:
        """Return how much would be queued, and the script of the last job."""
        every = [(train, attacks) for train, attacks in self.commands() if not train.directory.done.exists()]
        code = self.directory.code / "1"
        names = [f"# {train.directory.root}, and {len(attacks)} attacks on it" for train, attacks in every]
        return "\n".join([*names, self.rest([], code).script(), f"# {describe(code)}"])

    def is_needed(self, force: bool) -> bool:
        """Say so where all is done, or the study's last job waits or runs; `force` cancels that."""
        if self.directory.finished.exists() and all(task.done for task in tasks(self.design)) and not force:
            print(f"{self.directory.root}: done: {self.directory.page} (--force writes the page anew)")
            return False
        living = slurm.alive(line["job"] for line in jobs.remembered(self.directory.slurm))
        if living and not force:
            print(f"{self.directory.root}: job {', '.join(living)} waits or runs (--force cancels it)")
            return False
        slurm.cancel_and_wait(living)
        check_free(self.directory.lock)
        return True

    def queue(self) -> str:
        """Queue every training and attack that is missing, then the job behind them."""
        place = self.directory
        with output(place.root):
            freeze(self.design)
            write_configs(self.design)
            write_atomic(place.slurm / CLUSTER, dump_config(self.cluster))
        Start("study", place.root).ends.forget()
        for path in (place.finished, place.failed):
            path.unlink(missing_ok=True)
        before = [job for train, attacks in self.commands() for job in queued(train, attacks)]
        what = self.rest(before, snapshot(place.code, place.root.parent))
        job = slurm.submit(what, [Call("launch.rank:finish_study", (place.config,))])
        jobs.remember(place.slurm, job, what)
        return f"{place.root}: {len(before)} jobs, then job {job}"

    def rest(self, before: list[str], code: Path) -> Submission:
        """Return the job that does what is left when all others have ended, however that was."""
        place = self.directory
        after = {"dependency": f"afterany:{':'.join(before)}"} if before else {}
        last_word = f"launch.after study {shlex.quote(str(place.root))}"
        cluster = self.cluster.of("study")
        return submission(place.name, place.slurm, cluster, code, last_word, sbatch=after, kind="study")


def queued(train: TrainCommand, attacks: list[AttackCommand]) -> list[str]:
    """Queue a training and its attacks where they are needed; return the last job of each that will still run."""
    found = alive_after(train)
    if found or train.directory.done.exists():  # there are no attacks on what has failed meanwhile
        found += [job for attack in attacks for job in alive_after(attack)]
    return found


def alive_after(command: TrainCommand | AttackCommand) -> list[str]:
    folder = command.directory.slurm
    with slurm.submitting(folder):
        if command.is_needed(force=False):
            command.queue()
    return slurm.alive([line["job"] for line in jobs.remembered(folder)][-1:])


if __name__ == "__main__":
    command_line(main)
