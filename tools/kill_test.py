"""Kill a training run at random instants, continue it, compare every bit with the run that nobody disturbed.

    python tools/kill_test.py [--kills 10] [--ranks 1 2 3 4] [--seed 0]

Kernel averages, activation noise, input noise, augmentation, EMA and gradient accumulation are on; a checkpoint is
begun at every step, so that kills hit the writing too, and evaluations are frequent. SIGKILL goes to all ranks at
once, from the first second of the process on. Prints for each number of ranks how many of the disturbed runs
ended bitwise equal; the exit code is 1 unless all did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from kapdist.data.beton.write import write_beton
from kapdist.records.metrics import TIMED

CONFIG = """
data: {train: train.beton, validation: test.beton, flip: true, translate: 2}
model: {name: resnet10, num_classes: 4, width: 0.125}
kap: {pool_size: 3, layout: line, noise_std: 0.2}
optim: {lr: 0.1, warmup_epochs: 0.5, ema_decay: 0.9}
train: {epochs: 4, batch_size: 16, accumulation_steps: 2, input_noise_std: 0.05, log_every_steps: 3,
        eval_batch_size: 4, checkpoint_every_steps: 1}
"""
LIMIT_SECONDS = 600.0


class Patterns:
    """A source of small images that are a function of their number."""

    name: str = "patterns"
    class_names: tuple[str, ...] = ("a", "b", "c", "d")
    largest_bytes: int | None = 32 * 32 * 3

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8), index % 4

    def image_name(self, index: int) -> str:
        return f"pattern {index}"


def start(folder: Path, name: str, ranks: int) -> list[subprocess.Popen[bytes]]:
    """Start all ranks of a run in process groups of their own."""
    meeting = folder / f"meeting-{uuid.uuid4().hex}.json"  # no port is looked up, which another process might take
    processes = []
    for rank in range(ranks):
        variables: dict[str, object] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
        }
        variables |= {"KAPDIST_RENDEZVOUS": meeting}
        command = [sys.executable, "-m", "kapdist.cli", "train", "config.yaml", f"name={name}"]
        environment = os.environ | {key: str(value) for key, value in variables.items()}
        with (folder / f"{name}-{rank}.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )
    return processes


def end(processes: list[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Wait so long; kill what is left. Return whether all ended by themselves, and well."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return all(process.returncode == 0 for process in processes)


def same(folder: Path, one: str, other: str) -> bool:
    """Return whether two runs have the same weights, bit by bit, and the same metrics."""
    first, second = (load_file(folder / "runs" / name / "model.safetensors") for name in (one, other))
    weights = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return weights and numbers(folder, one) == numbers(folder, other)


def numbers(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def undisturbed_seconds(folder: Path, ranks: int) -> float:
    """Run the reference; return how long it took from start to end."""
    started = time.monotonic()
    if not end(start(folder, "whole", ranks), LIMIT_SECONDS):
        raise SystemExit((folder / "whole-0.log").read_text())
    return time.monotonic() - started


def disturbed(folder: Path, name: str, ranks: int, kills: int, longest: float, chance: random.Random) -> int:
    """Kill a run up to `kills` times and let it end; return how many kills hit it."""
    for hit in range(kills):
        if end(start(folder, name, ranks), chance.uniform(0, longest)):
            return hit
    if not end(start(folder, name, ranks), LIMIT_SECONDS):
        raise SystemExit((folder / f"{name}-0.log").read_text())
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10, help="for each number of ranks")
    parser.add_argument("--kills-per-run", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    all_equal = [all_bitwise(ranks, options.kills, options.kills_per_run, options.seed) for ranks in options.ranks]
    return 0 if all(all_equal) else 1


def all_bitwise(ranks: int, kills: int, kills_per_run: int, seed: int) -> bool:
    """Kill runs on so many ranks; say of each, and of all, whether they ended as the undisturbed one did."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.yaml").write_text(CONFIG)
        write_beton(Patterns(64), folder / "train.beton")
        write_beton(Patterns(24), folder / "test.beton")
        longest = undisturbed_seconds(folder, ranks)
        done = runs = equal = 0
        while done < kills:
            name, runs = f"killed-{runs}", runs + 1
            hits = disturbed(folder, name, ranks, min(kills_per_run, kills - done), longest, chance)
            bits = same(folder, "whole", name)
            done, equal = done + hits, equal + bits
            print(f"{name}: {hits} kills, {'bitwise equal' if bits else 'DIFFERENT'}", flush=True)
    print(f"{done} kills on {ranks} ranks: {equal} of {runs} runs ended bitwise equal", flush=True)
    return equal == runs


if __name__ == "__main__":
    sys.exit(main())
