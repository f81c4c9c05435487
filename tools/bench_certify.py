"""What `kapdist certify` makes of a model's plain forward rate, and how long a certification takes.

    python tools/bench_certify.py [--rounds 5] [--draws 5000] [--network resnet10] [--width 0.125]
        [--device cpu] [--parts rate whole]

Rate: draws per second of a unit of work (images from the beton, noise, forward passes, counts, checks, records)
over images per second of the same folded model on one batch in memory, of the same size, in turn; on a CPU by
seconds of the CPU and one thread, which other work on the machine disturbs least. Whole: the command itself on 64
images with 10,000 draws each, two processes of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_step import machine
from kill_test import Patterns
from torch import Tensor, nn

from kapdist.attack.devices import computing
from kapdist.attack.model import load_model
from kapdist.certify.run import plan_alone, run_certify
from kapdist.certify.shard import Units
from kapdist.config import Config
from kapdist.config.certify import CertifyConfig
from kapdist.config.file import dump_config
from kapdist.data.beton.write import write_beton
from kapdist.models.build import build_model
from kapdist.models.weights import save_weights
from kapdist.run.paths import RunDir

GOAL = 0.9
PIXELS = 32  # of Patterns
WHOLE_IMAGES, WHOLE_DRAWS = 64, 10_000


def trained(folder: Path, options: argparse.Namespace) -> Path:
    """Write a run with random weights, whose values no part of the work depends on; return its directory."""
    write_beton(Patterns(WHOLE_IMAGES), folder / "images.beton")
    model = {"name": options.network, "num_classes": 10, "width": options.width, "stem": "cifar"}
    data = {"train": "images.beton", "validation": str(folder / "images.beton"), "resolution": PIXELS}
    values = {"name": "run", "data": data, "model": model, "train": {"input_noise_std": 0.25}}
    config = Config.model_validate(values)
    run = RunDir(folder / "run")
    run.root.mkdir()
    run.config.write_text(dump_config(config))
    save_weights(build_model(config.model, config.kap), run.weights)
    return run.root


def settings(options: argparse.Namespace, **fields: Any) -> CertifyConfig:
    values = {"draws": options.draws, "num_images": 8, "threads": 1, "device": options.device}
    return CertifyConfig.model_validate(values | fields)


def rate(run: Path, options: argparse.Namespace) -> Iterator[str]:
    """Yield our draws per second, the model's images per second and the ratio."""
    config = settings(options, name="rate")
    plan = plan_alone(run, config)
    units = Units(RunDir(run).certified("rate"), plan)
    clock = time.process_time if plan.subject.device == "cpu" else time.perf_counter
    draws = plan.subject.num_images * (plan.draws + plan.selection_draws)
    with computing(plan.subject) as device:
        model = load_model(plan.subject.model, run).to(device)
        batch = torch.rand(plan.subject.images_per_pass, 3, PIXELS, PIXELS)
        batch = batch.to(device).contiguous(memory_format=torch.channels_last)

        def ours() -> float:
            return seconds(lambda: units.do(units.units, lambda done, note: None), clock, device)

        def plain() -> float:
            return seconds(lambda: forward(model, batch, draws // len(batch)), clock, device)

        ours(), plain()
        pairs = [(ours() / draws, plain() / (draws // len(batch) * len(batch))) for _ in range(options.rounds)]
    name = f"{options.network}, width {options.width:g}, {PIXELS} px, batches of {len(batch)}"
    yield f"{name}, on {plan.subject.device}: certify {1 / median(pairs, 0):,.0f} draws/s"
    yield f"plain forward {1 / median(pairs, 1):,.0f} images/s"
    ratios = [theirs / our for our, theirs in pairs]
    yield (
        f"ratio {statistics.median(ratios):.3f} (median of {len(ratios)} paired rounds, "
        f"{min(ratios):.3f} to {max(ratios):.3f}); goal: at least {GOAL}"
    )


def median(pairs: list[tuple[float, float]], place: int) -> float:
    return statistics.median(pair[place] for pair in pairs)


def forward(model: nn.Module, batch: Tensor, passes: int) -> None:
    with torch.inference_mode():
        for _ in range(passes):
            model(batch)


def seconds(work: Callable[[], None], clock: Callable[[], float], device: torch.device) -> float:
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def whole(run: Path, options: argparse.Namespace) -> Iterator[str]:
    config = settings(options, name="whole", draws=WHOLE_DRAWS, num_images=WHOLE_IMAGES, num_shards=2)
    started = time.perf_counter()
    run_certify(run, config)
    yield f"{WHOLE_IMAGES} images, {WHOLE_DRAWS:,} draws, two processes: {time.perf_counter() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--network", default="resnet10")
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=("rate", "whole"), default=("rate", "whole"))
    options = parser.parse_args()
    print(f"certify: {machine()}")
    print(f"command: python tools/bench_certify.py {' '.join(sys.argv[1:])}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        run = trained(Path(temporary), options)
        for part in options.parts:
            for line in {"rate": rate, "whole": whole}[part](run, options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
