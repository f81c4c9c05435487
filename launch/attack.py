"""Queue an attack on Slurm: a plan, arrays of shards, an aggregation that repeats what is missing.

python launch/attack.py RUN CONFIG [key=value ...]; submitting it again runs the missing shards only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import shlex
import shutil
from collections.abc import Iterator, Sequence

from kapdist.config import AttackConfig
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.records.sharding import missing_shards, num_chunks
from kapdist.run.files import write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import AttackDir, RunDir
from launch import jobs, slurm
from launch.after import CLUSTER
from launch.array import AttackJobs
from launch.call import Call
from launch.cluster import ClusterConfig, load_cluster, split_words
from launch.command import command_line
from launch.planned import ATTACK, is_planned, refuse_another
from launch.snapshot import describe, snapshot
from launch.status.training import trainer
from launch.submission import Submission


def main() -> None:
    arguments = parse()
    words, cluster_words = split_words(arguments.words)
    config = load_config(AttackConfig, arguments.config, words)
    cluster = load_cluster(arguments.cluster, cluster_words)
    run = RunDir(arguments.run.absolute())
    attack = run.attack(config.name)
    if config.model.factory is None:
        run.load_config()  # a directory that is no run is refused before anything is written
    refuse_another(attack, config)
    if arguments.dry_run:
        print(dry_run(run, attack, config, cluster, trainings_to_wait_for(run, config)))
        return
    with slurm.submitting(attack.slurm):
        if is_needed(attack, arguments.force):
            trainings = trainings_to_wait_for(run, config)
            with summary_set_aside(attack):
                print(queue(run, attack, config, cluster, trainings))


def queue(
    run: RunDir, attack: AttackDir, config: AttackConfig, cluster: ClusterConfig, trainings: Sequence[str]
) -> str:
    """Submit all jobs of the attack; return the line for the user."""
    planned = is_planned(attack, config) and not trainings
    prepare(attack, config, cluster)
    shards, num_shards = shards_to_run(attack, config, cluster, planned)
    queued = AttackJobs(run, attack, cluster, snapshot(attack.code, run.root.parent), trainings)
    done = queued.submit(shards, num_shards, with_plan=not planned)
    return f"{done} (python launch/status.py {shlex.quote(str(attack.root))})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/attack.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory; with model.factory=, any directory")
    parser.add_argument("config", type=Path, help="YAML file of the attack")
    parser.add_argument("words", nargs="*", metavar="key=value", help="of the config, or cluster.key=value")
    parser.add_argument("--cluster", type=Path, help="YAML file of the cluster (configs/cluster)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and written")
    force = "cancel what waits or runs, submit what is missing, and merge anew what is merged"
    parser.add_argument("--force", action="store_true", help=force)
    return parser.parse_intermixed_args()


def dry_run(
    run: RunDir, attack: AttackDir, config: AttackConfig, cluster: ClusterConfig, trainings: Sequence[str]
) -> str:
    """Return the scripts of the plan, the arrays and the aggregation, and write nothing."""
    code, planned = attack.code / "1", is_planned(attack, config) and not trainings
    scripts: list[str] = []

    def keep(what: Submission, calls: Sequence[Call]) -> str:
        scripts.append(what.script())
        return str(what.about["kind"]).upper()

    what = AttackJobs(run, attack, cluster, code, trainings)
    what.each(*shards_to_run(attack, config, cluster, planned), keep, with_plan=not planned)
    written = f"# {attack.slurm / ATTACK}: the resolved config\n# {describe(code)}"
    return "\n\n".join([*scripts, written])


def is_needed(attack: AttackDir, force: bool) -> bool:
    """Say so where the attack is merged or its jobs wait or run; `force` cancels those."""
    if attack.summary.exists() and not force:
        print(f"{attack.root}: done: {attack.summary} (--force merges it anew)")
        return False
    living = slurm.alive(line["job"] for line in jobs.remembered(attack.slurm))
    if living and not force:
        print(f"{attack.root}: job {', '.join(living)} waits or runs (--force cancels it and submits the rest)")
        return False
    slurm.cancel_and_wait(living)
    check_free(attack.lock)
    return True


def trainings_to_wait_for(run: RunDir, config: AttackConfig) -> list[str]:
    """Return the jobs that still train a model of this attack.

    Raises:
        InputError: a run has no weights and nobody trains it, or somebody does whom no job can wait for.
    """
    own = [] if config.model.factory or config.model.weights else [run]
    transferred = [RunDir(config.transfer_from.absolute())] if config.transfer_from else []
    return [job for needed in (*own, *transferred) for job in trainings_of(needed)]


def trainings_of(run: RunDir) -> list[str]:
    run.load_config()
    if run.done.exists():
        return []
    if living := slurm.alive(line["job"] for line in jobs.remembered(run.slurm) if line["kind"] == "train"):
        return living
    if worker := trainer(run, seen_elsewhere=False):
        raise InputError(run.root, "a run that is done, or whose training is a job to wait for", worker)
    if not run.weights.exists():
        raise InputError(run.root, "a run that is done, or in Slurm's queue", f"no {run.weights.name}")
    return []


@contextlib.contextmanager
def summary_set_aside(attack: AttackDir) -> Iterator[None]:
    """Move summary and report, which say that all is done, to slurm/merged/<n>; back if nothing is queued."""
    places = (attack.summary, attack.root / "report")
    aside = attack.slurm / "merged" / str(1 + len(list((attack.slurm / "merged").glob("*"))))
    moved = [(place, aside / place.name) for place in places if place.exists() and attack.summary.exists()]
    for place, kept in moved:
        kept.parent.mkdir(parents=True, exist_ok=True)
        place.rename(kept)
    try:
        yield
    except BaseException:
        for place, kept in moved:
            kept.rename(place)
        if moved:
            aside.rmdir()
        raise


def shards_to_run(
    attack: AttackDir, config: AttackConfig, cluster: ClusterConfig, planned: bool
) -> tuple[list[int], int]:
    """Return (shards that lack a chunk, number of shards): never more shards than chunks."""
    if planned:
        total = min(cluster.shards, num_chunks(attack))
        return list(missing_shards(attack, total)) or [0], total
    chunks = -(-config.num_images // config.chunk_size) or cluster.shards
    total = min(cluster.shards, chunks)
    return list(range(total)), total


def prepare(attack: AttackDir, config: AttackConfig, cluster: ClusterConfig) -> None:
    """Write what the jobs read, and forget how earlier ones ended; no chunk is touched.

    Raises:
        InputError: the directory cannot be written.
    """
    try:
        write_atomic(attack.slurm / ATTACK, dump_config(config))
        write_atomic(attack.slurm / CLUSTER, dump_config(cluster))
        for name in ("ends", "failed"):
            shutil.rmtree(attack.slurm / name, ignore_errors=True)
        attack.failed.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(attack.root, "a place that can be written", error.strerror or str(error)) from None


if __name__ == "__main__":
    command_line(main)
