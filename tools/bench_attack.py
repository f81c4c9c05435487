"""What kapdist costs around the stock attacks, what a second shard brings, how long a merge takes.

    python tools/bench_attack.py [--rounds 5] [--chunks 16] [--merge-images 50000]
        [--parts overhead scaling passes merge]

Overhead: a shard (images from the beton, attack, checks, records) against pyautoattack alone on the same images in
memory, chunk by chunk with the same seeds and one thread, in turn, in seconds of the CPU, which other work on the
machine disturbs least; screen and leaving out are switched off, so that both do the same passes. Scaling: two
shards at once against one, processes of one thread each, from start to end.
Passes: with both switched on, beside the library's own, on a model that falls at once and on one that never does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_step import machine
from kill_test import Patterns
from pyautoattack import AutoAttack

import kapdist.attack.images as images_of
from kapdist.attack.chunk import AttackOutcome, ChunkOutcome
from kapdist.attack.merge import merge
from kapdist.attack.model import load_model
from kapdist.attack.plan import plan_attack
from kapdist.attack.rows import chunk_table
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig
from kapdist.data.beton.write import write_beton
from kapdist.records.attack_plan import AttackPlan, write_plan
from kapdist.records.sealed import write_table
from kapdist.rng import derive_seed
from kapdist.run.paths import AttackDir

CHUNK = 32
PARTS = ("overhead", "scaling", "passes", "merge")
MODEL = """
import torch
from kapdist.models import MODELS

def build():
    torch.manual_seed(0)
    return MODELS["resnet10"](num_classes=10, stem="cifar", width=0.125)
"""


def planned(folder: Path, name: str, **fields: Any) -> tuple[AttackDir, AttackPlan]:
    values = {
        "name": name,
        "model": {"factory": "model.py:build"},
        "data": folder / "images.beton",
        "num_images": 0,
        "num_classes": 10,
        "version": "custom",
        "attacks": ["apgd-ce"],
        "eps": 1e-6,
        "chunk_size": CHUNK,
        "threads": 1,
        "device": "cpu",
        "screen": 0,
        "compact": False,
    }
    plan = plan_attack(folder / "run", AttackConfig.model_validate(values | fields))
    return AttackDir(folder / "run" / "attacks" / name), plan


def batches(plan: AttackPlan) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return all chunks in memory, labelled as the model says, so that the attacks have something to do."""
    return list(images_of.read_chunks(plan, range(plan.num_chunks)))


def library_seconds(plan: AttackPlan, chunks: list[tuple[torch.Tensor, torch.Tensor]], folder: Path) -> float:
    model = load_model(plan.model, folder / "run")
    started = time.process_time()
    for number, (images, labels) in enumerate(chunks):
        seed = derive_seed(plan.seed, "attack", number)
        library = AutoAttack(
            model, attacks=list(plan.attacks), eps=plan.eps, norm=plan.norm, seed=seed, version="custom"
        )
        library.run_standard_evaluation(images, labels, batch_size=len(images))
    return time.process_time() - started


def shard_seconds(attack: AttackDir) -> float:
    for file in attack.chunks.glob("*"):
        file.unlink()
    started = time.process_time()
    run_shard(attack.root, 0, 1)
    return time.process_time() - started


def processes_seconds(attack: AttackDir, num_shards: int) -> float:
    """Return the time of so many shards at once, as processes."""
    for file in attack.chunks.glob("*"):
        file.unlink()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    commands = [
        [sys.executable, "-m", "kapdist.attack", str(attack.root), str(n), str(num_shards)]
        for n in range(num_shards)
    ]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    assert all(process.wait() == 0 for process in running)
    return time.perf_counter() - started


def merge_seconds(folder: Path, num_images: int, rounds: int) -> list[float]:
    """Return the times of merging an attack with eight stages that is written down without having been run."""
    attack, plan = planned(folder, "merge", chunk_size=64)
    attack.plan.unlink()
    images = tuple(range(num_images))
    changes: dict[str, Any] = {"images": images, "num_images": num_images, "images_sha256": sha_of(images)}
    changes |= {"costs": (), "attacks": ("apgd-ce", "apgd-t", "fab-t", "square"), "smaller_eps": (5e-7,)}
    plan = AttackPlan.model_validate(plan.model_dump() | changes)
    write_plan(attack, plan)
    assert len(plan.stages) == 8
    for chunk in range(plan.num_chunks):
        labels, outcome = made_up(plan, chunk)
        write_table(chunk_table(plan, chunk, labels, outcome), attack.chunk(chunk))
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        assert merge(attack.root).num_images == num_images
        seconds.append(time.perf_counter() - started)
    return seconds


def sha_of(images: tuple[int, ...]) -> str:
    from kapdist.run.files import fingerprint

    return fingerprint(list(images))


def made_up(plan: AttackPlan, chunk: int) -> tuple[torch.Tensor, ChunkOutcome]:
    size = len(plan.chunk_images(chunk))
    random = torch.Generator().manual_seed(chunk)
    labels = torch.randint(10, (size,), generator=random)
    left = torch.ones(size, dtype=torch.bool)
    outcomes = []
    for stage in plan.stages:
        broke = left & (torch.rand(size, generator=random) < 0.1)
        norm = torch.rand(size, generator=random, dtype=torch.float64)
        outcomes.append(AttackOutcome(stage.name, stage.eps, left, broke, norm, labels, 9, 9, 9, 9, 1.5))
        left = left & ~broke
    nothing, smallest = torch.empty(0), torch.zeros(size)
    return labels, ChunkOutcome(labels, tuple(outcomes), nothing, smallest, None, None, 0, 9.0)


def passes(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for a weak and for a robust model: our passes over the library's."""
    for word, eps in (("weak", 0.1), ("robust", 1e-7)):
        fields = {"version": "standard", "attacks": [], "screen": 10, "compact": True, "num_images": 8}
        if word == "robust":  # Square's 5000 queries are the same on both sides
            fields |= {"version": "custom", "attacks": ["apgd-ce", "apgd-t", "fab-t"]}
        attack, _ = planned(folder, word, eps=eps, **fields)
        run_shard(attack.root, 0, 1)
        found = merge(attack.root)
        forwards, backwards = found.forwards / found.library_forwards, found.backwards / found.library_backwards
        yield (
            f"{word} model, {found.num_robust} of {found.num_images} images robust: "
            f"{forwards:.3f} of the library's forward passes, {backwards:.3f} of its backward passes"
        )


def labelled(folder: Path, num_images: int) -> None:
    """Write a beton whose labels are what the model says: every image has to be attacked."""
    sys.path.insert(0, str(folder))
    from model import build  # type: ignore[import-not-found]

    plain = Patterns(num_images)
    model = build().eval()
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(plain.item(i)[0]).permute(2, 0, 1) for i in range(num_images)])
        labels = model(images / 255).argmax(1).tolist()

    class Labelled(Patterns):
        class_names = tuple("abcdefghij")

        def item(self, index: int) -> tuple[Any, int]:
            return plain.item(index)[0], labels[index]

    write_beton(Labelled(num_images), folder / "images.beton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--merge-images", type=int, default=50_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"attack: {machine()}")
    print(f"command: python tools/bench_attack.py {' '.join(sys.argv[1:])}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        (folder / "model.py").write_text(MODEL)
        labelled(folder, CHUNK * options.chunks)
        parts = {"overhead": overhead, "scaling": scaling, "passes": passes, "merge": merging}
        for name in options.parts:
            for line in parts[name](folder, options):
                print(line, flush=True)


def overhead(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    attack, plan = planned(folder, "overhead", num_images=CHUNK)
    chunks = batches(plan)
    shard_seconds(attack)  # compiles the loader
    ratios = [shard_seconds(attack) / library_seconds(plan, chunks, folder) for _ in range(options.rounds)]
    yield f"one shard over the library alone: {spread(ratios)}; goal: at most 1.03"


def scaling(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    attack, _ = planned(folder, "scaling")
    times = [(processes_seconds(attack, 1), processes_seconds(attack, 2)) for _ in range(options.rounds // 2)]
    yield f"two shards over one: {spread([one / two for one, two in times])} times; goal: 1.8"


def merging(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    seconds = merge_seconds(folder, options.merge_images, options.rounds)
    yield f"merge of {options.merge_images} images x 8 attacks: {spread(seconds)} s; goal: 2"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} (median of {len(values)}, {min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
