"""How far honest models stay from the thresholds of the sanity report; run with PYTHONPATH=tests.

Prints the Markdown table of docs/sanity.md: for each check the worst number of honest models of several seeds, and
the planted defences that it fails.
"""

from __future__ import annotations

import copy
import sys

import torch
from sanity.honest import EPS, fashion, honest
from sanity.planted import PLANTED

from kapdist.attack.ball import Ball
from kapdist.config import RemediesConfig, SanityConfig
from kapdist.sanity.examine import examine
from kapdist.sanity.verdict import CHECKS

NONE = RemediesConfig(after="never")
KINDS = ("cnn", "faint cnn", "plain", "kap", "adversarial")


def numbers(model: torch.nn.Module, config: SanityConfig, seed: int, mode: str = "off") -> dict[str, float | None]:
    images, labels = fashion("test", config.num_images)
    found = examine(model, images, labels, Ball("Linf", EPS), config, seed=seed, mode=mode)
    print(found["verdict"], found["causes"], found["suspected"], found["attacks"], file=sys.stderr, flush=True)
    return {check["name"]: check["value"] for check in found["checks"]}


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    config = SanityConfig(remedies=NONE)
    good = [numbers(honest(kind, seed), config, seed) for seed in range(seeds) for kind in KINDS]
    noisy = [
        numbers(honest("noise", seed), SanityConfig(num_images=32, draws=5, remedies=NONE), seed, "fresh")
        for seed in range(1)
    ]
    little = SanityConfig(num_images=32, iterations=10, restarts=2, draws=3, queries=50, remedies=NONE)
    base = honest("cnn", seeds)
    bad = {it.__name__: numbers(it(copy.deepcopy(base)).eval(), little, 0) for it in PLANTED}
    print("| check | warns | fails | honest, worst | with noise | fails on |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for check in CHECKS:
        worst = max if check.worse == "above" else min
        columns = [
            worst((row[check.name] for row in rows if row[check.name] is not None), default=None)
            for rows in (good, noisy)
        ]
        failed = [name for name, row in bad.items() if check.judge(row[check.name]) == "fail"]
        said = ["–" if value is None else f"{value:.3g}" for value in (check.warn, check.fail, *columns)]
        print(f"| {check.name} | {' | '.join(said)} | {', '.join(failed)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
