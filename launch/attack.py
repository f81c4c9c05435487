"""Queue an attack on Slurm: a plan, arrays of shards, an aggregation that repeats what is missing.

python launch/attack.py RUN CONFIG [key=value ...]; submitting it again runs the missing shards only.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this file lies in is what is submitted, whatever else is installed.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shutil

from kapdist.config import AttackConfig
from kapdist.configfile import dump_config, load_config
from kapdist.errors import InputError
from kapdist.lock import check_free
from kapdist.rundir import AttackDir, RunDir, write_atomic
from kapdist.sharding import missing_shards, num_chunks
from launch import jobs, slurm
from launch.after import CLUSTER
from launch.array import ATTACK, AttackJobs
from launch.cluster import ClusterConfig, load_cluster, split_words
from launch.command import command_line
from launch.snapshot import describe, snapshot


def main() -> None:
    arguments = parse()
    words, cluster_words = split_words(arguments.words)
    config = load_config(AttackConfig, arguments.config, words)
    cluster = load_cluster(arguments.cluster, cluster_words)
    run = RunDir(arguments.run.absolute())
    attack = run.attack(config.name)
    if arguments.dry_run:
        print(dry_run(run, attack, config, cluster))
        return
    with slurm.submitting(attack.slurm):
        if is_needed(attack, arguments.force):
            planned = is_planned(attack, config)
            prepare(attack, config, cluster)
            shards, num_shards = shards_to_run(attack, config, cluster, planned)
            queued = AttackJobs(run, attack, cluster, snapshot(attack.code, run.root.parent))
            print(queued.submit(shards, num_shards, with_plan=not planned))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/attack.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory; with model.factory=, any directory")
    parser.add_argument("config", type=Path, help="YAML file of the attack")
    parser.add_argument("words", nargs="*", metavar="key=value", help="of the config, or cluster.key=value")
    parser.add_argument("--cluster", type=Path, help="YAML file of the cluster (configs/cluster)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and written")
    parser.add_argument("--force", action="store_true", help="cancel what waits or runs and submit anew")
    return parser.parse_intermixed_args()


def dry_run(run: RunDir, attack: AttackDir, config: AttackConfig, cluster: ClusterConfig) -> str:
    """Return the scripts of the plan, the arrays and the aggregation, and write nothing."""
    code, planned = attack.code / "1", is_planned(attack, config)
    what = AttackJobs(run, attack, cluster, code)
    arrays = what.arrays(*shards_to_run(attack, config, cluster, planned), after="" if planned else "PLAN")
    scripts = [*([] if planned else [what.plan()]), *arrays, what.aggregation(["ARRAY"] * len(arrays))]
    written = f"# {attack.slurm / ATTACK}: the resolved config\n# {describe(code)}"
    return "\n\n".join([*(job.script() for job in scripts), written])


def is_needed(attack: AttackDir, force: bool) -> bool:
    """Say so where the attack is merged or its jobs wait or run; `force` cancels those."""
    if attack.summary.exists():
        print(f"{attack.root}: done: {attack.summary}")
        return False
    living = slurm.alive(line["job"] for line in jobs.remembered(attack.slurm))
    if living and not force:
        print(f"{attack.root}: job {', '.join(living)} waits or runs (--force cancels it and submits the rest)")
        return False
    slurm.cancel_and_wait(living)
    check_free(attack.lock)
    return True


def is_planned(attack: AttackDir, config: AttackConfig) -> bool:
    """Return whether this very config was planned here; else the plan job decides whether it may be."""
    path = attack.slurm / ATTACK
    return attack.plan.exists() and path.exists() and path.read_text() == dump_config(config)


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
        raise InputError(attack.root, "a directory that can be written", error.strerror or str(error)) from None


if __name__ == "__main__":
    command_line(main)
