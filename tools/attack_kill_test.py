"""Kill the shards of an attack at random instants, start them again, compare with the attack nobody disturbed.

    python tools/attack_kill_test.py [--kills 50] [--shards 7] [--seed 0]

The reference is one shard, in its own directory. The disturbed attacks have many shards, two at a time in random
order; each is ended by SIGKILL after a random time from the first moment of its process on, and started again. The
records must be bitwise those of the reference, but for the clock's columns, and so must the kept images. One of the
plans attacks a noisy model, averaged over draws and re-scored. The exit code is 1 unless all are equal.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from kill_test import Patterns

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.config import AttackConfig
from kapdist.data.beton.write import write_beton
from kapdist.records.attack_plan import AttackPlan
from kapdist.run.paths import AttackDir

MODEL = """
import torch
from torch import nn
from kapdist.kap import KAPConv2d

def build():
    torch.manual_seed(0)
    first = KAPConv2d(3, 9, 5, stride=4, pool_size=3, noise_std=0.05)
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(9 * 7 * 7, 4))
"""
PLANS = {
    "plain": {"noise": "off", "attacks": ["apgd-ce"], "screen": 5, "eps": [0.002, 0.01]},
    "noisy": {
        "noise": "fresh",
        "attacks": ["apgd-ce"],
        "eot": 4,
        "images_per_pass": 24,
        "rescore": 10,
        "eps": 0.01,
    },
}
AT_ONCE = 2
LIMIT_SECONDS = 900.0


def planned(folder: Path, name: str, kind: str) -> AttackPlan:
    values = {
        "name": name,
        "model": {"factory": "model.py:build"},
        "data": folder / "images.beton",
        "num_images": 0,
        "num_classes": 4,
        "version": "custom",
        "chunk_size": 6,
        "threads": 1,
        "device": "cpu",
        "keep_adversarial": True,
    }
    return plan_attack(folder / "run", AttackConfig.model_validate(values | PLANS[kind]))


def start(attack: AttackDir, shard: int, num_shards: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kapdist.attack", str(attack.root), str(shard), str(num_shards)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    attack.logs.mkdir(parents=True, exist_ok=True)
    with attack.shard_log(shard).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def ended_well(attack: AttackDir, shard: int, process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait so long, kill what is left; return whether it ended by itself."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False
    if code != 0:
        raise SystemExit(attack.shard_log(shard).read_text())
    return True


def undisturbed(attack: AttackDir) -> float:
    """Run the reference as one shard; return its time."""
    started = time.monotonic()
    if not ended_well(attack, 0, start(attack, 0, 1), LIMIT_SECONDS):
        raise SystemExit(f"{attack.root}: not through within {LIMIT_SECONDS:.0f} s")
    merge(attack.root)
    return time.monotonic() - started


def disturbed(attack: AttackDir, num_shards: int, kills: int, longest: float, chance: random.Random) -> int:
    """Run all shards, killed until `kills` are spent; return how many kills hit."""
    waiting, hits = chance.sample(range(num_shards), num_shards), 0
    while waiting:
        batch = [(shard, start(attack, shard, num_shards)) for shard in waiting[:AT_ONCE]]
        for shard, process in batch:
            spent = hits >= kills
            if ended_well(attack, shard, process, LIMIT_SECONDS if spent else chance.uniform(0, longest)):
                waiting.remove(shard)
            else:
                hits += 1
        chance.shuffle(waiting)
    merge(attack.root)
    return hits


def same(first: AttackDir, second: AttackDir) -> bool:
    """Return whether records and kept images are bitwise equal."""
    tables = [pl.read_parquet(attack.records).drop(pl.selectors.contains("seconds")) for attack in (first, second)]
    images = [[np.load(file) for file in sorted(attack.adversarial.iterdir())] for attack in (first, second)]
    pairs = zip(*images, strict=True)
    return tables[0].equals(tables[1]) and all(one.tobytes() == other.tobytes() for one, other in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-per-attack", type=int, default=9)
    parser.add_argument("--shards", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        (folder / "model.py").write_text(MODEL)
        write_beton(Patterns(48), folder / "images.beton")
        references, longest = {}, 0.0
        for kind in PLANS:
            planned(folder, kind, kind)
            references[kind] = AttackDir(folder / "run" / "attacks" / kind)
            longest = max(longest, undisturbed(references[kind]))
        done = attacks = equal = 0
        while done < options.kills:
            kind = list(PLANS)[attacks % len(PLANS)]
            name = f"{kind}-{attacks}"
            planned(folder, name, kind)
            attack = AttackDir(folder / "run" / "attacks" / name)
            kills = min(options.kills_per_attack, options.kills - done)
            hits = disturbed(attack, options.shards, kills, longest, chance)
            bits = same(references[kind], attack)
            done, equal, attacks = done + hits, equal + bits, attacks + 1
            print(f"{name}: {hits} kills, {'bitwise equal' if bits else 'DIFFERENT'}", flush=True)
    print(f"{done} kills, {options.shards} shards: {equal} of {attacks} attacks ended bitwise equal to one shard")
    return 0 if equal == attacks else 1


if __name__ == "__main__":
    sys.exit(main())
