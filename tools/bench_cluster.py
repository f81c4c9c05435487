"""The cluster path, timed in a Slurm of its own on this machine (tools/slurm_sandbox.py).

    python tools/bench_cluster.py [--shards 300]

Prints how long a submission takes, how long it takes from a requeue to the first step after it, and whether an
array of many two-second shards ends with every chunk once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBMISSIONS = 5
LIMIT_SECONDS = 3000.0
TRAIN = """
data: {train: test.beton, validation: test.beton}
model: {name: resnet10, num_classes: 10, width: 0.125}
optim: {lr: 0.1, warmup_epochs: 0.5}
train: {epochs: 200, batch_size: 250, log_every_steps: 1, evaluate_every_epochs: 200, checkpoint_every_steps: 5}
engine: {threads: 1}
"""
# One image per chunk, so that a chunk is a few seconds of attack on one core.
ATTACK = "{chunk_size: 1, eps: 8/255, version: custom, attacks: [apgd-ce, apgd-t], threads: 1, num_images: %d}"


class Sandbox:
    """A Slurm that is up while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tool(self, *words: str) -> str:
        command = [
            sys.executable,
            str(ROOT / "tools" / "slurm_sandbox.py"),
            *words,
            "--dir",
            str(self.folder / "slurm"),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout

    def __enter__(self) -> Sandbox:
        self.tool("up")
        self.environment = os.environ | {"SLURM_CONF": json.loads(self.tool("status", "--json"))["slurm_conf"]}
        return self

    def __exit__(self, *error: object) -> None:
        self.tool("down")

    def run(self, *words: object) -> str:
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def launch(self, script: str, *words: object) -> float:
        """Run a command of launch/ and return its seconds."""
        started = time.perf_counter()
        self.run(sys.executable, ROOT / "launch" / f"{script}.py", *words)
        return time.perf_counter() - started


def wait_until(condition: Callable[[], bool], what: str) -> float:
    """Return the seconds until it holds."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > LIMIT_SECONDS:
            sys.exit(f"waited {LIMIT_SECONDS:g} s for {what}")
        time.sleep(0.05)
    return time.perf_counter() - started


def prepare(folder: Path) -> None:
    """Write a beton of Fashion-MNIST and the configs."""
    command = [sys.executable, "-m", "kapdist.cli", "data", "write", "fashion-mnist", str(folder / "test.beton")]
    subprocess.run([*command, "--split", "test"], check=True, capture_output=True, cwd=ROOT)
    (folder / "run.yaml").write_text(TRAIN)


def submission_seconds(sandbox: Sandbox) -> list[float]:
    """Return how long queueing a training takes, as whole processes."""
    held = "cluster.sbatch={hold: true}"
    seconds = [sandbox.launch("train", "run.yaml", f"name=queued-{n}", held) for n in range(SUBMISSIONS)]
    sandbox.run("scancel", "--me")
    return seconds


def requeue_seconds(sandbox: Sandbox) -> float:
    """Return the time from `scontrol requeue` of a running job to the first step after it."""
    run = sandbox.folder / "runs" / "requeued"
    sandbox.launch("train", "run.yaml", "name=requeued", "cluster.nodes=2")
    job = json.loads((run / "slurm" / "jobs.jsonl").read_text())["job"]
    wait_until(lambda: len(list((run / "checkpoints").glob("step-*"))) > 1, "checkpoints")
    sandbox.run("scontrol", "requeue", job)
    log = run / "attempts" / "2" / "rank-0.log"
    seconds = wait_until(lambda: log.exists() and "train  step" in log.read_text(), "a step after the requeue")
    sandbox.run("scancel", job)
    return seconds


def array(sandbox: Sandbox, shards: int) -> tuple[float, float, int]:
    """Attack a trained run in many shards; return (seconds to queue, seconds to the summary, images in it)."""
    (sandbox.folder / "short.yaml").write_text(TRAIN.replace("epochs: 200", "epochs: 1"))
    (sandbox.folder / "attack.yaml").write_text(ATTACK % shards)
    done = sandbox.folder / "runs" / "short" / "DONE"
    sandbox.launch("train", "short.yaml", "train.batch_size=500", "train.evaluate_every_epochs=1")
    wait_until(done.exists, "the run to attack")
    attack = done.parent / "attacks" / "attack"
    words = [f"cluster.shards={shards}", "cluster.max_array_size=128", "cluster.shards_at_once=4"]
    queued = sandbox.launch("attack", done.parent, "attack.yaml", *words)
    seconds = wait_until(lambda: (attack / "summary.json").exists() or (attack / "FAILED").exists(), "the summary")
    if not (attack / "summary.json").exists():
        sys.exit((attack / "FAILED").read_text())
    return queued, seconds, json.loads((attack / "summary.json").read_text())["num_images"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=300, help="elements of the array, a chunk each")
    options = parser.parse_args()
    print(f"The cluster path in a sandbox of two nodes on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name, Sandbox(Path(name)) as sandbox:
        prepare(sandbox.folder)
        seconds = submission_seconds(sandbox)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(
            f"submission: {statistics.median(seconds):.2f} s (median of {SUBMISSIONS}, {spread}); goal: 1",
            flush=True,
        )
        print(f"requeue to first step: {requeue_seconds(sandbox):.1f} s; goal: 30", flush=True)
        if options.shards:
            queued, seconds_all, images = array(sandbox, options.shards)
            chunks = len(list(sandbox.folder.glob("runs/short/attacks/attack/chunks/*.parquet")))
            print(
                f"{options.shards} shards: queued in {queued:.2f} s, merged after {seconds_all:.0f} s: "
                f"{chunks} chunks, {images} images, none lost or doubled (the merge refuses both)"
            )


if __name__ == "__main__":
    main()
