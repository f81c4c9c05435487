"""What loading costs beside its rate: on a cold page cache, in memory, in a training step, and in pixels.

    python tools/bench_data.py [--rounds 5] [--batch-size 16] [--workers N] [--images 0] [--stamps FOLDER]
                               [--resolution 160] [--steps 3] [--network resnet50] [--parts pixels step caches]

Cold and warm: the first epoch of a fresh process, after the files were dropped from the page cache (posix_fadvise)
or read once, in turn. Memory: what a process and its workers hold of their own (Pss of anonymous and shared memory,
the page cache left out) at the end of that epoch, less what they held before there was a loader; and the same with
eight times the images. A step: training steps fed by the loader beside steps on one batch in memory, in turn.
Pixels: crops decoded in full and at a reduced scale, beside the mean over each pixel's footprint in float64.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from bench_loader import rate
from bench_step import Trainer, machine
from loaders import LOADERS, QUALITY, SIDE, STAMPS, Setting, as_files, our_photographs, write_photographs
from PIL import Image

from kapdist import models
from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo, open_beton, stored_bytes
from kapdist.data.beton.write import write_beton
from kapdist.data.load import augment
from kapdist.data.load.loader import Loader
from kapdist.data.load.pixels import FULL, eighths
from kapdist.environment import usable_cpus

TIMES = 8  # as many images in the longer beton
PARTS = ["pixels", "step", "caches"]
BATCH = 64  # images of a batch, of the children that measure rates and memory


def held_mib() -> float:
    """Return the memory of this process and its children, the page cache and mapped files left out, MiB."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        total += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
    return total / 1024


def child(name: str, beton: Path, files: Path, side: int, workers: int) -> None:
    """Run one epoch of one loader and print JSON: images per second, and MiB at its last batch."""
    torch.set_num_threads(1)
    info = open_beton(beton)
    before, held = held_mib(), 0.0
    epoch = LOADERS[name](Setting(info, files, side, BATCH, workers))
    last = -(-info.num_images // BATCH)

    def watched(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal held
        for index, batch in enumerate(epoch(number), 1):
            held = held_mib() if index == last else held
            yield batch

    found = rate(watched, 0, info.num_images, side)
    print(json.dumps({"images_per_second": found.images_per_second, "mib": held - before}), flush=True)
    os._exit(0)  # some loaders take seconds to end their workers


def run_child(name: str, given: Setting) -> dict[str, float]:
    words = ["--child", name, "--beton", given.info.path, "--files", given.files, "--workers", given.workers]
    command = [sys.executable, __file__, *map(str, words), "--resolution", str(given.side)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def drop(given: Setting) -> None:
    """Drop the beton and the files from the page cache; nobody has them mapped."""
    for path in (given.info.path, *given.files.rglob("*.jpg")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_caches(given: Setting, longer: Setting, names: Sequence[str], rounds: int) -> Iterator[str]:
    for name in names:
        cold, warm = [], []
        for _ in range(rounds):
            drop(given)
            cold.append(run_child(name, given))
            warm.append(run_child(name, given))
        ratios = [a["images_per_second"] / b["images_per_second"] for a, b in zip(cold, warm, strict=True)]
        rates = [statistics.median(one["images_per_second"] for one in found) for found in (cold, warm)]
        mib = statistics.median(one["mib"] for one in warm)
        more = run_child(name, longer)["mib"]
        yield (
            f"{name:30} cold {rates[0]:6.0f}, warm {rates[1]:6.0f} images/s, ratio {statistics.median(ratios):.2f};"
            f" {mib:5.0f} MiB, with {TIMES} times the images {more:5.0f} MiB"
        )


class Fed:
    """Steps of one trainer, each on the next batch of endless epochs of a loader; counts the seconds of waiting."""

    def __init__(self, trainer: Trainer, given: Setting) -> None:
        self.trainer, self.given = trainer, given
        self.epoch, self.batches = our_photographs(given), self.endless()
        self.waited = 0.0

    def endless(self) -> Iterator[torch.Tensor]:
        number = 0
        while True:
            for images, _ in self.epoch(number):
                if len(images) == self.given.batch_size:  # another shape would be another step
                    yield images
            number += 1

    def __call__(self) -> None:
        started = time.perf_counter()
        self.trainer.images = next(self.batches)
        self.waited += time.perf_counter() - started
        self.trainer()


@dataclass(frozen=True)
class Steps:
    """Seconds of a few training steps: of the clock, of the CPU, and of waiting for batches."""

    clock: float
    cpu: float
    waited: float


def timed(step: Callable[[], None], steps: int, fed: Fed) -> Steps:
    waited, cpu, started = fed.waited, time.process_time(), time.perf_counter()
    for _ in range(steps):
        step()
    return Steps(time.perf_counter() - started, time.process_time() - cpu, fed.waited - waited)


def bench_stall(given: Setting, rounds: int, steps: int, network: str) -> Iterator[str]:
    """Yield what data costs a step: the share of it that waits for a batch, and the step's own slowing down."""
    images = torch.rand(given.batch_size, 3, given.side, given.side).to(memory_format=torch.channels_last)
    trainer = Trainer(getattr(models, network)(), images, torch.float32, False)
    fed = Fed(trainer, given)

    def in_memory() -> None:
        trainer.images = images
        trainer()

    pairs = []
    for number in range(rounds + 1):
        order = (fed, in_memory) if number % 2 else (in_memory, fed)
        found = {step: timed(step, steps, fed) for step in order}
        pairs.append((found[fed], found[in_memory]))
    pairs = pairs[1:]
    ratios = sorted(data.clock / memory.clock for data, memory in pairs)
    cpu = statistics.median(data.cpu / memory.cpu for data, memory in pairs)
    waited = statistics.median(data.waited / data.clock for data, _ in pairs)
    seconds = statistics.median(memory.clock for _, memory in pairs) / steps
    yield f"{network} step, batch {given.batch_size}, {given.side} px, in memory: {1000 * seconds:.0f} ms"
    yield (
        f"with data: ratio {statistics.median(ratios):.3f} (median of {rounds} paired rounds of {steps} steps, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}; by CPU time {cpu:.3f}); waits {100 * waited:.2f}% of the step"
    )


def crops(info: BetonInfo, side: int, decode: str) -> np.ndarray:
    """Return every image's crop in epoch 0, (num_images, side, side, 3) float64 from 0 to 255."""
    keys = {"crop": "random-resized", "resolution": side, "decode": decode}
    config = DataConfig.model_validate({"train": info.path, "validation": info.path, **keys})
    loader = Loader(
        info, config, training=True, seed=0, max_batch_size=BATCH, device=torch.device("cpu"), num_workers=1
    )
    order = np.split(np.arange(info.num_images), range(BATCH, info.num_images, BATCH))
    images = torch.cat([batch.images for batch in loader.batches(order)])
    return (images * 255).round().permute(0, 2, 3, 1).numpy().astype(np.float64)


def shares(start: int, extent: int, cells: int, parts: int) -> np.ndarray:
    """Return (parts, cells): the share of each part of an interval that lies in each cell."""
    edges, cell = start + extent * np.arange(parts + 1) / parts, np.arange(cells)
    lengths = (np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)).clip(0)
    return lengths / lengths.sum(1, keepdims=True)


def bench_pixels(info: BetonInfo, side: int) -> Iterator[str]:
    """Yield how far full and reduced decoding are from each other and from an exact decoding and mean."""
    key, data = augment.epoch_key(0, 0), stored_bytes(info.path)
    full, reduced = crops(info, side, "full"), crops(info, side, "reduced")
    differences: dict[str, list[np.ndarray]] = {"reduced - full": [], "full - exact": [], "reduced - exact": []}
    for index in range(info.num_images):
        shape = int(info.layout.heights[index]), int(info.layout.widths[index])
        top, left, height, width = augment.random_window(key, index, *shape)
        if eighths(height, width, side) == FULL:
            continue
        start = int(info.layout.offsets[index])
        image = Image.open(io.BytesIO(data[start : start + int(info.layout.sizes[index])].tobytes()))
        rows, columns = shares(top, height, shape[0], side), shares(left, width, shape[1], side)
        exact = np.stack([rows @ band @ columns.T for band in np.moveaxis(np.asarray(image, np.float64), 2, 0)], 2)
        differences["reduced - full"].append(np.abs(reduced[index] - full[index]))
        differences["full - exact"].append(np.abs(full[index] - exact))
        differences["reduced - exact"].append(np.abs(reduced[index] - exact))
    count = len(differences["reduced - full"])
    yield f"{count} of {info.num_images} crops have {side} px at half the resolution or less; of those, in 1/255:"
    for name, found in differences.items():
        every = np.concatenate([one.ravel() for one in found])
        yield f"{name:16} mean {every.mean():.3f}, 99% {np.percentile(every, 99):.1f}, largest {every.max():.0f}"


class Repeated:
    """A source several times over."""

    largest_bytes: int | None = None

    def __init__(self, info: BetonInfo, times: int) -> None:
        self.info, self.times, self.data = info, times, stored_bytes(info.path)
        self.name, self.class_names = f"{times} times {info.path.name}", info.class_names

    def __len__(self) -> int:
        return self.times * self.info.num_images

    def item(self, index: int) -> tuple[np.ndarray, int]:
        index, layout = index % self.info.num_images, self.info.layout
        start = int(layout.offsets[index])
        image = Image.open(io.BytesIO(self.data[start : start + int(layout.sizes[index])].tobytes()))
        return np.asarray(image), int(self.info.labels[index])

    def image_name(self, index: int) -> str:
        return f"image {index}"


def bench(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    info = write_photographs(options.stamps, folder / "stamps.beton", SIDE, QUALITY, options.images or sys.maxsize)
    given = Setting(info, folder / "files", options.resolution, options.batch_size, options.workers)
    if "pixels" in options.parts:
        yield from bench_pixels(info, options.resolution)
    if "step" in options.parts:
        yield from bench_stall(given, options.rounds, options.steps, options.network)
    if "caches" in options.parts:
        write_beton(Repeated(info, TIMES), folder / "longer.beton", jpeg_quality=QUALITY)
        longer = Setting(open_beton(folder / "longer.beton"), folder / "more", given.side, BATCH, options.workers)
        for setting in (given, longer):
            as_files(setting.info, setting.files)
        yield from bench_caches(given, longer, options.loaders, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="of the training step")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="threads or processes of each loader")
    parser.add_argument("--images", type=int, default=0, help="0 takes all")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of class folders")
    parser.add_argument("--resolution", type=int, default=160, help="pixels")
    parser.add_argument("--steps", type=int, default=3, help="training steps of a round")
    parser.add_argument("--network", default="resnet50", choices=["resnet10", "resnet18", "resnet50"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--loaders", nargs="+", default=list(LOADERS), choices=list(LOADERS), help="cold and warm")
    parser.add_argument("--child", choices=list(LOADERS), help=argparse.SUPPRESS)
    parser.add_argument("--beton", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.beton, options.files, options.resolution, options.workers)
    print(
        "what loading costs beside its rate; goals: a stall under 3% of a ResNet-50 step, and memory that does not"
    )
    print("grow with the data")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}")
    print(f"runs:     {options.rounds} paired rounds; {options.workers} workers", flush=True)
    if not options.stamps.is_dir():
        print(f"skipped, there is no {options.stamps} (Debian's package tuxpaint-stamps-default)")
        return
    with tempfile.TemporaryDirectory() as folder:
        for line in bench(options, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
