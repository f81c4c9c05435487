"""All benchmarks, one after the other: `make bench`. Each prints its claim, machine, command and number of runs.

    python tools/bench.py [--quick]

They share the machine with nothing of ours; a noisy neighbour shows in the spread, and the ratios are paired.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOOLS = Path(__file__).parent
HELP_RUNS = 5
PLAN_RUNS = 5
RANKS, SHARDS, TRAINING_IMAGES = 1024, 10_000, 1_281_167


def commands(quick: bool) -> Iterator[list[str]]:
    """Yield the benchmarks as commands that anyone can run by themselves."""
    yield [str(TOOLS / "bench_step.py"), "--steps", "2" if quick else "10"]
    yield [str(TOOLS / "bench_ensemble.py"), "--steps", "2" if quick else "9"]
    narrow = ["--network", "narrow-resnet18", "--batch-size", "128", "--pixels", "32", "--threads", "1"]
    yield [str(TOOLS / "bench_step.py"), *narrow, "--steps", "2" if quick else "20"]
    yield [str(TOOLS / "bench_loop.py"), "--rounds", "2" if quick else "15"]
    yield [str(TOOLS / "bench_loader.py"), "--rounds", "2" if quick else "7"]
    yield [str(TOOLS / "bench_write.py"), "--rounds", "2" if quick else "7"]
    yield [str(TOOLS / "bench_data.py"), *(["--rounds", "1", "--images", "60", "--steps", "1"] if quick else [])]
    yield [str(TOOLS / "bench_attack.py"), *(["--rounds", "2", "--chunks", "2"] if quick else [])]
    yield [
        str(TOOLS / "bench_certify.py"),
        *(["--rounds", "1", "--draws", "100", "--parts", "rate"] if quick else []),
    ]
    yield [str(TOOLS / "bench_launch.py"), "--rounds", "2" if quick else "9"]
    few = ["--images", "32", "--pixels", "64", "--permutations", "199", "--noisy-images", "4", "--draws", "2"]
    yield [str(TOOLS / "bench_topography.py"), *(few if quick else [])]


def help_seconds() -> list[float]:
    """Return how long `kapdist --help` takes, as whole processes."""
    seconds = []
    for _ in range(HELP_RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kapdist.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return seconds


def planning_seconds() -> list[float]:
    """Return how long the forecasts take, with what each rank takes of two steps and each shard of an attack."""
    from kapdist.config import AttackConfig, Config
    from kapdist.forecast.attack import forecast_attack
    from kapdist.forecast.footprint import footprint
    from kapdist.forecast.training import Machine, forecast

    data = {"train": "train.beton", "validation": "val.beton"}
    train = {"batch_size": 16_384, "accumulation_steps": 2}
    config = Config.model_validate({"name": "bench", "data": data, "model": {"name": "resnet50"}, "train": train})
    attack = AttackConfig(name="bench", num_images=0)
    weights = footprint(config)
    seconds = []
    for _ in range(PLAN_RUNS):
        started = time.perf_counter()
        plan = forecast(config, TRAINING_IMAGES, Machine(RANKS // 8, 8), weights, None).plan
        shares = [plan.rank_batch(step, rank) for step in (0, plan.total_steps - 1) for rank in range(RANKS)]
        found = forecast_attack(attack, 50_000, 1000, SHARDS, RANKS, 1000.0, None)
        seconds.append(time.perf_counter() - started)
        assert len(shares) == 2 * RANKS
        assert found.num_shards == SHARDS
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs; no figures to quote")
    options = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=TOOLS)
    print(f"kapdist {commit.stdout.strip() or 'outside of a checkout'}, {time.strftime('%Y-%m-%d')}", flush=True)
    for command in commands(options.quick):
        print(flush=True)
        subprocess.run([sys.executable, *command], check=True)
    seconds = help_seconds()
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(
        f"\nkapdist --help: {statistics.median(seconds):.2f} s (median of {HELP_RUNS} processes, {spread}); goal: 1"
    )
    seconds = planning_seconds()
    spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
    print(
        f"planning at {RANKS:,} ranks / {SHARDS:,} shards: {statistics.median(seconds):.3f} s "
        f"(median of {PLAN_RUNS} runs, {spread}); goal: 1"
    )


if __name__ == "__main__":
    main()
