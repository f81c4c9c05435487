"""What loading costs: images per second of our loader, stock FFCV's and ImageFolder's, paired in one process.

    python tools/bench_loader.py [--rounds 7] [--batch-size 512] [--workers N] [--images 0] [--stamps FOLDER]
                                 [--resolution 160] [--parts fashion photographs stores]

All decode on as many threads or processes and end in float32 in [0, 1]. A round is one epoch of each, in turn; a
ratio is between the two of one round. Beside it stands the CPU time of an image, over the process and its workers:
on a machine with other work it says more than the clock does.
Fashion-MNIST: raw 32 x 32 images, flip and translation.
Photographs: Debian's tuxpaint stamps enlarged to a longer side of 500 pixels, JPEG of quality 90, random resized
crop and flip; the same JPEG bytes as a beton and as files. They are few, so an epoch takes each of them several
times, or what an epoch costs to begin would be part of the measure.
Stores: the photographs with a longer side of 256 pixels as YCbCr planes, as pixels and as JPEG, beside each other
and beside our JPEG of 500 pixels, by our loader.
Augmentation: our loader on both, with RandAugment (two operations) or random erasing, beside itself without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from bench_step import machine
from loaders import (
    LOADERS,
    QUALITY,
    SIDE,
    STAMPS,
    Epoch,
    Setting,
    as_files,
    image_folder,
    ours,
    stock,
    write_fashion,
    write_photographs,
    write_stored,
)

from kapdist.data.beton.layout import BetonInfo
from kapdist.environment import usable_cpus

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # isort: skip
from ffcv.transforms import RandomHorizontalFlip, RandomTranslate  # isort: skip

TRANSLATE = 2
SMALLER = 256  # pixels of the longer side of a store that is made for training
PARTS = ["fashion", "photographs", "stores"]
COPIES = 4  # of every photograph in an epoch
AUGMENTED: dict[str, dict[str, Any]] = {
    "with RandAugment": {"rand_augment": 2},
    "with random erasing": {"erasing": 0.25},
}


@dataclass(frozen=True)
class Rate:
    """One epoch: images per second, and CPU milliseconds per image of the process and its workers."""

    images_per_second: float
    cpu_ms: float


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children, those that have ended too."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def rate(epoch: Epoch, number: int, num_images: int, side: int) -> Rate:
    """Time one epoch, from asking for it to its last batch.

    Raises:
        RuntimeError: it had other batches than it should: then there is nothing to compare.
    """
    count = 0
    cpu, started = cpu_seconds(), time.perf_counter()
    for images, labels in epoch(number):
        if images.shape[1:] != (3, side, side) or len(labels) != len(images):
            raise RuntimeError(f"images {tuple(images.shape)}, labels {tuple(labels.shape)}")
        count += len(images)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    if count != num_images:
        raise RuntimeError(f"{count} images in an epoch of {num_images}")
    return Rate(count / seconds, 1000 * cpu / count)


def measure(loaders: Mapping[str, Epoch], rounds: int, num_images: int, side: int) -> dict[str, list[Rate]]:
    """Return each loader's rate in every round; the first round warms up and is dropped."""
    rates: dict[str, list[Rate]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        # Who goes first alternates: a machine that slows down must not favour one of them.
        for name in list(loaders) if number % 2 else reversed(list(loaders)):
            rates[name].append(rate(loaders[name], number, num_images, side))
    return {name: found[1:] for name, found in rates.items()}


def ratio(mine: Sequence[Rate], theirs: Sequence[Rate]) -> str:
    """Return the ratio of the images per second, and that of the CPU times the other way."""
    pairs = list(zip(mine, theirs, strict=True))
    clock = sorted(a.images_per_second / b.images_per_second for a, b in pairs)
    cpu = statistics.median(b.cpu_ms / a.cpu_ms for a, b in pairs)
    return (
        f"ratio {statistics.median(clock):.3f} (median of {len(pairs)} paired rounds of one epoch, "
        f"{clock[0]:.3f} to {clock[-1]:.3f}; by CPU time {cpu:.3f})"
    )


def report(rates: Mapping[str, list[Rate]], workers: int, beside: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one data set: what each loader did, and each one's ratios to those beside it."""
    for name, found in rates.items():
        median = statistics.median(one.images_per_second for one in found)
        cpu = statistics.median(one.cpu_ms for one in found)
        yield f"{name:30} {median:9.0f} images/s, {median / workers:8.0f} per worker; CPU {cpu:.3f} ms per image"
    for name, found in rates.items():
        for other in beside:
            if name not in beside:
                yield f"{name} to {other}:"
                yield ratio(found, rates[other])


def bench_fashion(path: Path, images: int, rounds: int, batch_size: int, workers: int) -> Iterator[str]:
    info = write_fashion(path, images)
    decoders = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(TRANSLATE)]
    loaders = {
        "stock FFCV": stock(info, decoders, batch_size, workers),
        "kapdist": ours(info, batch_size, workers, flip=True, translate=TRANSLATE),
        "kapdist, kept in memory": ours(info, batch_size, workers, flip=True, translate=TRANSLATE, on_device=True),
    }
    yield f"Fashion-MNIST, {info.num_images} raw images, 32 px, flip and translation"
    yield from report(measure(loaders, rounds, info.num_images, 32), workers, ["stock FFCV"])
    yield from bench_augmentation(info, rounds, batch_size, workers, flip=True, translate=TRANSLATE)


def bench_augmentation(
    info: BetonInfo, rounds: int, batch_size: int, workers: int, copies: int = 1, **data: Any
) -> Iterator[str]:
    """Yield what augmentation costs our loader, beside itself with the same keys of `data`."""
    wanted: dict[str, dict[str, Any]] = {"without": {}, **AUGMENTED}
    loaders = {name: ours(info, batch_size, workers, copies, **data, **more) for name, more in wanted.items()}
    rates = measure(loaders, rounds, copies * info.num_images, data.get("resolution", 32))
    yield from report(rates, workers, ["without"])


def bench_stamps(
    path: Path, folder: Path, images: int, rounds: int, batch_size: int, workers: int, side: int = 160
) -> Iterator[str]:
    if not folder.is_dir():
        yield f"photographs: skipped, there is no {folder} (Debian's package tuxpaint-stamps-default)"
        return
    info = write_photographs(folder, path, SIDE, QUALITY, images)
    files = path.with_name("files")
    as_files(info, files)
    given = Setting(info, files, side, batch_size, workers, COPIES)
    loaders = {name: make(given) for name, make in LOADERS.items()}
    yield f"photographs, {COPIES} times {info.num_images} JPEG images of {SIDE} px, quality {QUALITY}, to {side} px"
    yield f"ImageFolder is {image_folder(files, side)[0]}"
    rates = measure(loaders, rounds, COPIES * info.num_images, side)
    yield from report(rates, workers, ["stock FFCV", "ImageFolder"])
    crops = {"crop": "random-resized", "flip": True, "resolution": side}
    yield from bench_augmentation(info, rounds, batch_size, workers, COPIES, **crops)


def bench_stores(
    path: Path, folder: Path, images: int, rounds: int, batch_size: int, workers: int, side: int
) -> Iterator[str]:
    if not folder.is_dir():
        return
    large, jpeg = f"JPEG of {SIDE} px", f"JPEG of {SMALLER} px"
    loaders, data = {}, {"crop": "random-resized", "flip": True, "resolution": side}
    for name, longer, store in (
        (f"YCbCr of {SMALLER} px", SMALLER, "ycbcr"),
        (f"raw of {SMALLER} px", SMALLER, "raw"),
        (jpeg, SMALLER, "jpeg"),
        (large, SIDE, "jpeg"),
    ):
        info = write_stored(folder, path.with_name(f"{name}.beton"), longer, images, store=store)
        loaders[name] = ours(info, batch_size, workers, COPIES, **data)
        yield f"{name}: {info.layout.sizes.sum() / info.num_images / 1024:.1f} KiB per image"
    rates = measure(loaders, rounds, COPIES * info.num_images, side)
    yield from report(rates, workers, [jpeg, large])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=512, help="of Fashion-MNIST; photographs take a quarter")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="threads or processes of each loader")
    parser.add_argument("--images", type=int, default=0, help="of each data set; 0 takes all")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of class folders")
    parser.add_argument("--resolution", type=int, default=160, help="of the photographs, pixels")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    options = parser.parse_args()
    # Stock FFCV sets torch's threads to its own number: the conversion has as many in all.
    torch.set_num_threads(options.workers)
    print("kapdist's loader beside stock FFCV's and ImageFolder's, images per second")
    print("goals: 0.95 of stock FFCV in full, 1.5 reduced; 2 times ImageFolder reduced, 1.2 times without FFCV")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}")
    size, workers = options.batch_size, options.workers
    print(
        f"runs:     {options.rounds} paired rounds; {workers} workers, batches of {size} and {max(1, size // 4)}, "
        "float32 on the CPU"
    )
    images = options.images or sys.maxsize
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stamps.beton")
        photographs = path, options.stamps, images, options.rounds, max(1, size // 4), workers, options.resolution
        parts = {
            "fashion": bench_fashion(Path(folder, "fashion.beton"), images, options.rounds, size, workers),
            "photographs": bench_stamps(*photographs),
            "stores": bench_stores(*photographs),
        }
        for part in options.parts:
            for line in parts[part]:
                print(line, flush=True)


if __name__ == "__main__":
    main()
