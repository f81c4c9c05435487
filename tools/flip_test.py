"""Flip random bits in the files of a run and of its attack; no number that is read from them may change unseen.

    python tools/flip_test.py [--flips 500] [--seed 0]

A run of one epoch, an evaluation and an attack of two chunks are made in a temporary folder. Then, one flip at a
time, everything that reads them does so: the newest checkpoint is loaded, weights, evaluation and report are read,
the attack is merged and the report read again. A flip is

- caught: something refuses to the end, and names the file;
- healed: something refused or was passed over, and the numbers are the undisturbed ones once the attack is merged;
- harmless: every number is the undisturbed one, and nobody said a word.

Prints the tally, and every number that changed unseen; the exit code is 1 if there is any, or if an exception other
than a refusal escaped. Logs, TensorBoard's files and snapshots of code are left alone: no number is read from them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kill_test import CONFIG, Patterns

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig, Config
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import load_config
from kapdist.data.beton.write import write_beton
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.records import sealed
from kapdist.report import comparison
from kapdist.report.facts import attack_facts, run_facts
from kapdist.run.paths import RunDir, weights_sha256
from kapdist.train.checkpoint import load, newest
from kapdist.train.evaluate_run import evaluate_run
from kapdist.train.loop import train

ATTACK = "flipped"
NOT_READ = {"attempts", "logs", "tensorboard", "code", "slurm"}
Read = Callable[[RunDir], Any]


class Found(NamedTuple):
    """What was read after a flip: values by reader, refusals by reader, exceptions that are none."""

    values: dict[str, str]
    refused: dict[str, str]
    escaped: dict[str, str]


def checkpoint(run: RunDir) -> str:
    path = newest(run)
    assert path is not None
    shared, own = load(path, Ranks())
    return f"{path.name} {list(numbers(shared))} {list(numbers(own))}"


def numbers(value: Any) -> Iterator[Any]:
    """Yield what a checkpoint holds, its tensors as lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    else:
        yield value.tolist() if isinstance(value, torch.Tensor) else value


def weights(run: RunDir) -> list[str]:
    return [weights_sha256(path) for path in (run.weights, run.best_weights)]


def evaluation(run: RunDir) -> dict[str, Any]:
    return sealed.read_json(run.evaluation("final"))


def report(run: RunDir) -> list[Any]:
    """Return what a page of the run says and plots."""
    found = comparison([run.root])
    (read,) = found.runs
    rows = [attack.records.rows() for attack in read.attacks if attack.records is not None]
    facts = [run_facts(read), *map(attack_facts, read.attacks)]
    return [found.csv(), found.markdown(), facts, read.config, read.plan, read.environment, read.metrics, rows]


def images(run: RunDir) -> list[str]:
    paths = sorted(run.attack(ATTACK).adversarial.glob("*.npy"))
    return [hashlib.sha256(sealed.read_array(path).tobytes()).hexdigest() for path in paths]


def merged(run: RunDir) -> dict[str, Any]:
    return merge(run.attack(ATTACK).root).describe()


READERS: dict[str, Read] = {
    "newest checkpoint": checkpoint,
    "weights": weights,
    "evaluation": evaluation,
    "report": report,
    "images": images,
    "merge": merged,
    "report after merge": report,
}


def read_all(run: RunDir) -> Found:
    """Let everything read the run, in the order of READERS."""
    found = Found({}, {}, {})
    for name, read in READERS.items():
        try:
            found.values[name] = repr(read(run))
        except InputError as error:
            found.refused[name] = str(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # polars panics, which is no Exception
            found.escaped[name] = f"{type(error).__name__}: {error}"
    return found


def verdict(before: Found, after: Found, path: Path) -> tuple[str, list[str]]:
    """Return caught, healed, harmless or UNSEEN, with what is to be said of it."""
    wrong = [f"{name}: {error}" for name, error in after.escaped.items()]
    changed = {name for name, value in after.values.items() if value != before.values[name]}
    older = "newest checkpoint" in changed and after.values["newest checkpoint"].split()[0]
    if older and older != before.values["newest checkpoint"].split()[0]:
        changed.remove("newest checkpoint")  # another one, which is whole
    wrong += [f"{name}: {difference(before.values[name], after.values[name])}" for name in sorted(changed)]
    if wrong:
        return "UNSEEN", wrong
    last = set(after.refused) - ({"report"} if "report after merge" in after.values else set())
    if not last:
        return ("healed" if after.refused or older else "harmless"), []
    named = any(path.name in line or path.stem in line for line in after.refused.values())
    return "caught" if named else "caught, but not named", [] if named else list(after.refused.values())


def difference(one: str, other: str) -> str:
    """Show two texts around the first place in which they differ."""
    place = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    return f"{one[max(0, place - 40) : place + 40]!r} became {other[max(0, place - 40) : place + 40]!r}"


def make(folder: Path) -> RunDir:
    """Train, evaluate, attack."""
    (folder / "config.yaml").write_text(CONFIG.replace("epochs: 4", "epochs: 1"))
    write_beton(Patterns(64), folder / "train.beton")
    write_beton(Patterns(24), folder / "test.beton")
    train(load_config(Config, folder / "config.yaml", ["name=whole", "engine.device=cpu", "engine.threads=1"]))
    run = RunDir(Path("runs") / "whole")
    evaluate_run(run.root, EvaluationConfig(name="final", device="cpu", threads=1))
    values = {"name": ATTACK, "version": "custom", "attacks": ["apgd-ce"], "num_images": 8, "chunk_size": 4}
    config = AttackConfig.model_validate(values | {"threads": 1, "device": "cpu", "keep_adversarial": True})
    plan_attack(run.root, config)
    run_shard(run.attack(ATTACK).root, 0, 1)
    merge(run.attack(ATTACK).root)
    return run


def flip(path: Path, chance: random.Random) -> str:
    """Flip one bit of a file; return where."""
    content = bytearray(path.read_bytes())
    byte, bit = chance.randrange(len(content)), chance.randrange(8)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return f"{path} byte {byte} bit {bit}"


def flippable(run: RunDir) -> list[Path]:
    files = [path for path in sorted(run.root.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in files if not NOT_READ & set(path.relative_to(run.root).parts)]


def flips(run: RunDir, count: int, chance: random.Random) -> Counter[tuple[str, str]]:
    """Flip one bit after the other, each in a run that is whole; return how often which verdict on which file.

    Ctrl-C ends it early.
    """
    whole = Path("whole")
    shutil.copytree(run.root, whole)
    before, tally = read_all(run), Counter[tuple[str, str]]()
    if before.refused or before.escaped:
        raise SystemExit(f"the undisturbed run: {before.refused | before.escaped}")
    with contextlib.suppress(KeyboardInterrupt):
        while tally.total() < count:
            shutil.rmtree(run.root)
            shutil.copytree(whole, run.root)
            path = chance.choice(flippable(run))
            where = flip(path, chance)
            name, lines = verdict(before, read_all(run), path)
            tally[name, path.name] += 1
            for line in lines:
                print(f"{name}: {where}: {line}", flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        run = make(Path(temporary))
        logging.disable(logging.WARNING)
        tally = flips(run, options.flips, random.Random(options.seed))
        os.chdir("/")
    verdicts = sorted({name for name, _ in tally})
    for name in verdicts:
        files = ", ".join(f"{count} {file}" for (one, file), count in sorted(tally.items()) if one == name)
        print(f"{name}: {files}")
    counts = {name: sum(count for (one, _), count in tally.items() if one == name) for name in verdicts}
    print(f"{tally.total()} flips: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if "UNSEEN" in counts else 0


if __name__ == "__main__":
    sys.exit(main())
