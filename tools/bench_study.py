"""Is a look at a study quick, and do its statistics hold what they say? All that is promised of both.

    python tools/bench_study.py [--studies 500] [--repeats 3]

A study of 30 models is planned and looked at as a user does it, a new process each time: seconds by the clock and
of the CPU, the best of the repeats. On a machine that others use the latter say more. Then interval_coverage.py.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import interval_coverage

from kapdist.study.design import make_design
from kapdist.study.frozen import freeze
from kapdist.study.tasks import tasks, write_configs

BASE = """
data: {train: train.beton, validation: test.beton}
model: {name: resnet10, num_classes: 10, width: 0.0625}
kap: {pool_size: 1}
"""
STUDY = """
train: base.yaml
seeds: 5
arms: {noise: {kap.noise_std: [0.1, 0.2, 0.3]}, kap: {kap: {pool_size: 3, noise_std: [0.1, 0.2, 0.3]}}}
attacks: {standard: {eps: [2/255, 8/255]}, eot: {version: eot-standard, noise: fresh}}
sanity: standard
topography: {}
claims: ["kap over noise, robust accuracy at 8/255, at equal clean accuracy"]
"""
LIMITS = {"plan": 2.0, "status": 1.0}


def seconds_of(words: list[str], folder: Path) -> tuple[float, float]:
    """Return (seconds by the clock, seconds of the CPU) that a command takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "kapdist.cli", "study", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base.yaml").write_text(BASE)
        (folder / "mine.yaml").write_text(STUDY)
        design = make_design(folder / "mine.yaml", [f"studies_dir={folder}/studies"])
        freeze(design)
        write_configs(design)
        print(f"a study of {len(design.trained)} models, {len(tasks(design))} commands")
        for word, limit in LIMITS.items():
            found = [seconds_of([word, "mine.yaml"], folder) for _ in range(arguments.repeats)]
            wall, cpu = (min(column) for column in zip(*found, strict=True))
            print(f"kapdist study {word}: {wall:.2f} s, {cpu:.2f} s of CPU (under {limit:g} s is promised)")
    interval_coverage.report(arguments.studies)


if __name__ == "__main__":
    main()
