"""How long the two commands of a login node take: looking at a thousand shards, and preparing a submission.

    python tools/bench_launch.py [--rounds N]

Claim: both take less than a second, as whole processes. The shards' directory is made for it: 10,000 planned
chunks, most of them there, a few shards given up; Slurm is asked where there is one, but knows no such job.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kapdist.records.sharding import chunks_of
from kapdist.run.files import write_atomic, write_json
from kapdist.run.paths import AttackDir
from launch.after import shard_failed
from launch.cluster import ClusterConfig
from launch.jobs import remember
from launch.submission import submission

NUM_SHARDS, NUM_CHUNKS, CHUNK_SIZE = 1000, 10_000, 5
CONFIG = ROOT / "configs" / "fashion_mnist" / "kap.yaml"
GOAL_SECONDS = 1.0


def make_attack(root: Path) -> AttackDir:
    """Write what an attack leaves whose last tenth of shards is not through."""
    attack = AttackDir(root)
    write_json(attack.plan, {"images": list(range(NUM_CHUNKS * CHUNK_SIZE)), "chunk_size": CHUNK_SIZE})
    attack.chunks.mkdir()
    for shard in range(NUM_SHARDS * 9 // 10):
        for chunk in chunks_of(NUM_CHUNKS, shard, NUM_SHARDS):
            attack.chunk(chunk).touch()
    what = submission(
        "bench",
        attack.slurm,
        ClusterConfig(),
        root,
        "launch.after",
        elements=NUM_SHARDS,
        kind="shards",
        shards=list(range(NUM_SHARDS)),
        num_shards=NUM_SHARDS,
    )
    remember(attack.slurm, "999999999", what)
    for shard in range(NUM_SHARDS - 10, NUM_SHARDS):
        write_atomic(shard_failed(attack, shard), "given up\n")
    return attack


def seconds(words: list[str], rounds: int) -> tuple[list[float], float]:
    """Return the time of each of some whole processes, and the mean of their CPU time."""
    wall, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / rounds


def line(title: str, wall: list[float], cpu: float) -> str:
    spread = f"{min(wall):.2f} to {max(wall):.2f}"
    words = f"median of {len(wall)} processes, {spread}; {cpu:.2f} s of CPU"
    return f"{title}: {statistics.median(wall):.2f} s ({words}); goal: {GOAL_SECONDS:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        attack = make_attack(Path(folder) / "attacks" / "bench")
        shown = seconds([str(ROOT / "launch" / "status.py"), str(attack.root)], rounds)
        prepared = seconds(
            [str(ROOT / "launch" / "train.py"), str(CONFIG), "--dry-run", f"runs_dir={folder}"], rounds
        )
    print(line(f"launch/status.py of {NUM_SHARDS:,} shards, {NUM_CHUNKS:,} chunks", *shown))
    print(line("launch/train.py --dry-run", *prepared))


if __name__ == "__main__":
    main()
