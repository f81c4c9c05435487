"""Queue a training on Slurm, or run the same job on this machine: python launch/train.py CONFIG [key=value ...]

One command per run: it is continued from its newest checkpoint until DONE is in its directory. With --then attacks
on it, and their reports, are queued behind it; with --seeds there is a run for each seed, an element of one array.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kapdist.config import AttackConfig, Config, check_limits
from kapdist.config.file import dump_config, load_config
from kapdist.config.vain import in_vain
from kapdist.errors import InputError
from kapdist.run.files import output, write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import RunDir, SeedsDir
from kapdist.study.settings import seeds_of
from launch import jobs, journal, local
from launch.after import CLUSTER, Start
from launch.attack import AttackCommand
from launch.call import Call
from launch.cluster import ClusterConfig, split_words
from launch.command import command_line, parse, parser_of, submit
from launch.container import folders_named
from launch.planned import refuse_another
from launch.runs import RunArrays
from launch.snapshot import describe, snapshot
from launch.submission import Submission, submission


def main() -> None:
    force = "start anew what runs, or run on what is done"
    parser = parser_of("train", __doc__, "YAML file of the training", force)
    parser.add_argument("--local", action="store_true", help="run the job here, without Slurm")
    parser.add_argument(
        "--seeds", metavar="N", help="an array of N runs with seeds 0 to N - 1, or of the seeds A,B,C"
    )
    parser.add_argument("--then", type=Path, action="append", default=[], help="YAML file of an attack to follow")
    arguments, config, cluster = parse(parser, Config)
    check_limits(config)
    for line in in_vain(config):  # jobs read a config that was written down whole, where nobody could tell
        print(f"kapdist: {line}", file=sys.stderr)
    for option in ("seeds", "then"):
        if arguments.local and getattr(arguments, option):
            raise InputError(f"--{option}", "jobs of Slurm's (no --local)", "--local")
    command: TrainCommand | SeedsCommand = TrainCommand(directory_of(config), config, cluster, arguments.local)
    if arguments.seeds:
        command = SeedsCommand(tuple(with_seeds(arguments, config, cluster)), config, cluster)
    attacks = list(attacks_on(command.runs, arguments, cluster))
    if submit(command, arguments) and arguments.local:
        sys.exit(local.train(directory_of(config), cluster))
    for attack in attacks:
        submit(attack, arguments)


def directory_of(config: Config) -> RunDir:
    return RunDir((config.runs_dir / config.name).absolute())


def with_seeds(arguments: argparse.Namespace, config: Config, cluster: ClusterConfig) -> Iterator[TrainCommand]:
    """Yield the training of each seed, named after it.

    Raises:
        InputError: seeds that are none or there twice, or one in the words too.
    """
    words, _ = split_words(arguments.words)
    if given := [word for word in words if word.startswith("seed=")]:
        raise InputError("--seeds", "seeds here or in a word, not in both", given[0])
    words = [word for word in words if not word.startswith("name=")]
    for seed in read_seeds(arguments.seeds):
        own = load_config(Config, arguments.config, [*words, f"name={config.name}_seed{seed}", f"seed={seed}"])
        yield TrainCommand(directory_of(own), own, cluster)


def read_seeds(text: str) -> tuple[int, ...]:
    value = int(text) if text.isdecimal() else text.split(",")
    return seeds_of("--seeds", value, ())


def attacks_on(
    runs: Sequence[RunDir], arguments: argparse.Namespace, cluster: ClusterConfig
) -> Iterator[AttackCommand]:
    """Yield the attacks that follow, on every run.

    Raises:
        InputError: an attack on another model, one that is there twice, or another than the one that was planned.
    """
    configs = [load_config(AttackConfig, path) for path in arguments.then]
    for path, config in zip(arguments.then, configs, strict=True):
        if config.model.factory:
            raise InputError(path, "an attack on what is trained", f"model.factory={config.model.factory}")
        if [other.name for other in configs].count(config.name) > 1:
            raise InputError("--then", "attacks of different names", f"{config.name} twice")
        for run in runs:
            refuse_another(run.attack(config.name), config)
            yield AttackCommand(run, config, cluster, "" if run.done.exists() else "TRAIN")


@dataclass(frozen=True)
class TrainCommand:
    """One training to queue, or to run here."""

    directory: RunDir
    config: Config
    cluster: ClusterConfig
    local: bool = False

    @property
    def runs(self) -> list[RunDir]:
        return [self.directory]

    touched = runs

    def submission(self, code: Path) -> Submission:
        """Return what is submitted, with a snapshot of the code; pure."""
        run = self.directory
        last_word = f"launch.after train {shlex.quote(str(run.root))}"
        folders = [run.root, *folders_named(self.config)]
        cluster = self.cluster.of("train")
        return submission(run.name, run.slurm, cluster, code, last_word, kind="train", folders=folders)

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
        """Say so where the run is done or its job waits or runs; `force` ends that job.

        Raises:
            InputError: the run is that of another config, whatever has become of it.
            LockedError: somebody is at work on it by other means.
        """
        run = self.directory
        run.check(self.config)
        living = jobs.training_jobs(run)
        if living and not force:
            run.check_same(self.config)
            print(f"{run.root}: job {', '.join(living)} waits or runs (--force cancels it and submits another)")
            return False
        if run.done.exists() and not force:
            print(f"{run.root}: done: {run.weights} (--force runs it on)")
            return False
        jobs.cancel(run.slurm, living)
        check_free(run.lock)
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

    def queue(self, force: bool = False) -> str:
        """Prepare the run's directory, snapshot the code and submit; DONE, if it is there, is set aside."""
        run = self.directory
        with done_set_aside([run]):
            self.prepare()
            if self.local:
                return ""
            what = self.submission(snapshot(run.code, run.root.parent))
            job = journal.queue(what, [Call("launch.rank:train", (run.root,))])
        return f"{run.root}: job {job}"


@dataclass(frozen=True)
class SeedsCommand:
    """The trainings of several seeds, one array; those that are done, wait or run are left out."""

    trainings: tuple[TrainCommand, ...]
    config: Config
    cluster: ClusterConfig

    @property
    def directory(self) -> SeedsDir:
        return SeedsDir((self.config.runs_dir / f"{self.config.name}_seeds").absolute())

    @property
    def runs(self) -> list[RunDir]:
        return [training.directory for training in self.trainings]

    @property
    def touched(self) -> list[RunDir | SeedsDir]:
        return [self.directory, *self.runs]

    def arrays(self, code: Path) -> RunArrays:
        return RunArrays(self.directory, self.cluster, code, [training.config for training in self.trainings])

    def dry_run(self) -> str:
        code = self.directory.code / "1"
        arrays = self.arrays(code)
        scripts = [arrays.trainings(piece).script() for piece in arrays.pieces(self.runs)]
        written = [f"# {run.config}: the resolved config" for run in self.runs]
        return "\n\n".join([*scripts, "\n".join([*written, f"# {describe(code)}"])])

    def is_needed(self, force: bool) -> bool:
        """Say of each that is done, or waits or runs, that it is; those that are left are queued."""
        needed = [training for training in self.trainings if training.is_needed(force)]
        return bool(needed)

    def queue(self, force: bool = False) -> str:
        """Submit those that are left, with `force` all of them; what says that they are done is set aside."""
        missing = [
            training
            for training in self.trainings
            if force or not (training.directory.done.exists() or jobs.training_jobs(training.directory))
        ]
        for training in missing:
            training.prepare()
        place = self.directory
        write_atomic(place.slurm / CLUSTER, dump_config(self.cluster))
        queued = self.arrays(snapshot(place.code, place.root.parent))
        numbers = []
        for piece in queued.pieces([training.directory for training in missing]):
            with done_set_aside(piece):
                numbers.append(queued.train(piece))
        return f"{place.root}: {len(missing)} trainings in job {', '.join(numbers)}"


@contextlib.contextmanager
def done_set_aside(runs: Sequence[RunDir]) -> Iterator[None]:
    """Move what says that runs are done to their last attempts; back if they are not queued."""
    moved: list[tuple[RunDir, Path]] = []
    try:
        for run in runs:
            if aside := run.set_aside(run.done, run.last_attempt()):
                moved.append((run, aside))
        yield
    except BaseException:
        for run, aside in moved:
            aside.rename(run.done)
        raise


if __name__ == "__main__":
    command_line(main)
