"""Queue a training on Slurm, or run the same job on this machine: python launch/train.py CONFIG [key=value ...]

One command per run: it is continued from its newest checkpoint until DONE is in its directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shlex

from kapdist.config import Config, check_limits
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.run.files import write_atomic
from kapdist.run.lock import check_free
from kapdist.run.paths import RunDir
from launch import jobs, local, slurm
from launch.after import CLUSTER, Start
from launch.call import Call
from launch.cluster import ClusterConfig, load_cluster, split_words
from launch.command import command_line
from launch.snapshot import describe, snapshot
from launch.submission import Submission, submission


def main() -> None:
    arguments = parse()
    words, cluster_words = split_words(arguments.words)
    config = load_config(Config, arguments.config, words)
    cluster = load_cluster(arguments.cluster, cluster_words)
    check_limits(config)
    run = RunDir((config.runs_dir / config.name).absolute())
    if arguments.dry_run:
        print(dry_run(run, config, cluster))
        return
    with slurm.submitting(run.slurm):
        if not is_needed(run, config, arguments.force):
            return
        prepare(run, config, cluster)
        if not arguments.local:
            print(queue(run, cluster))
            return
    sys.exit(local.train(run, cluster))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/train.py", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="YAML file of the training")
    parser.add_argument("words", nargs="*", metavar="key=value", help="of the config, or cluster.key=value")
    parser.add_argument("--cluster", type=Path, help="YAML file of the cluster (configs/cluster)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and written")
    parser.add_argument("--force", action="store_true", help="start anew what runs, or run on what is done")
    parser.add_argument("--local", action="store_true", help="run the job here, without Slurm")
    return parser.parse_intermixed_args()


def training_submission(run: RunDir, cluster: ClusterConfig, code: Path) -> Submission:
    """Return what is submitted for a run; pure."""
    last_word = f"launch.after train {shlex.quote(str(run.root))}"
    return submission(run.name, run.slurm, cluster.of("train"), code, last_word, kind="train")


def dry_run(run: RunDir, config: Config, cluster: ClusterConfig) -> str:
    """Return the script and what would be written, and write nothing."""
    code = run.code / "1"
    written = [
        f"# {run.config}: the resolved config",
        *(f"#   {line}" for line in dump_config(config).splitlines()),
        f"# {run.slurm / CLUSTER}: what is asked of the cluster",
        f"# {describe(code)}",
    ]
    return "\n".join([training_submission(run, cluster, code).script(), *written])


def is_needed(run: RunDir, config: Config, force: bool) -> bool:
    """Say so where the run is done or its job waits or runs; `force` ends that job and sets DONE aside.

    Raises:
        InputError: the run is that of another config, whatever has become of it.
        LockedError: somebody is at work on it by other means.
    """
    run.check(config)
    living = slurm.alive(line["job"] for line in jobs.remembered(run.slurm) if line["kind"] == "train")
    if living and not force:
        run.check_same(config)
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


def prepare(run: RunDir, config: Config, cluster: ClusterConfig) -> None:
    """Make the run directory this config's, with what the job reads in it.

    Raises:
        InputError: the directory belongs to another config, or cannot be written.
    """
    try:
        run.claim(config)
        write_atomic(run.slurm / CLUSTER, dump_config(cluster))
    except OSError as error:
        raise InputError(run.root, "a run directory that can be written", error.strerror or str(error)) from None
    Start("train", run.root).ends.forget()
    run.failed.unlink(missing_ok=True)


def queue(run: RunDir, cluster: ClusterConfig) -> str:
    """Snapshot the code and submit; return the line for the user."""
    what = training_submission(run, cluster, snapshot(run.code, run.root.parent))
    job = slurm.submit(what, [Call("launch.rank:train", (run.root,))])
    jobs.remember(run.slurm, job, what)
    return f"{run.root}: job {job} (python launch/status.py {shlex.quote(str(run.root))})"


if __name__ == "__main__":
    command_line(main)
