"""What our loader costs: images per second against stock FFCV's own loader, paired in one process.

    python tools/bench_loader.py [--rounds 7] [--batch-size 512] [--workers N] [--images 0] [--stamps FOLDER]

Both decode on as many threads and end in the same conversion to float32 in [0, 1]. A round is one epoch of each, in
turn; a ratio is between the two of one round. Fashion-MNIST: raw 32 x 32 images, flip and translation.
Photographs: Debian's tuxpaint stamps as JPEG of at most 256 pixels, random resized crop to 128; they are few, so an
epoch takes each of them several times, or what an epoch costs to begin would be part of the measure.
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

import numpy as np
import torch
from bench_step import machine
from torch import Tensor

from kapdist.config import DataConfig
from kapdist.data import BetonInfo, Loader, class_folder, epoch_order, fashion_mnist, open_beton, write_beton
from kapdist.environment import usable_cpus

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields.basics import IntDecoder  # isort: skip
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder  # isort: skip
from ffcv.loader import Loader as StockLoader  # isort: skip
from ffcv.loader import OrderOption  # isort: skip
from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor  # isort: skip

STAMPS = Path("/usr/share/tuxpaint/stamps")
TRANSLATE, CROP, MAX_SIDE, QUALITY = 2, 128, 256, 90
AHEAD = 3  # batches; both loaders' default
COPIES = 8  # of every photograph in an epoch

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def write_fashion(path: Path, images: int) -> BetonInfo:
    source = fashion_mnist("train")
    source.images, source.labels = source.images[:images], source.labels[:images]
    write_beton(source, path)
    return open_beton(path)


def write_stamps(folder: Path, path: Path, images: int) -> BetonInfo:
    source = class_folder(folder)
    chosen = epoch_order(len(source), 0, 0)[:images]  # of all classes
    source.files, source.labels = [source.files[index] for index in chosen], source.labels[chosen]
    write_beton(source, path, max_side=MAX_SIDE, jpeg_quality=QUALITY, skip_unreadable=True)
    return open_beton(path)


def stock(info: BetonInfo, decoders: list[Any], batch_size: int, workers: int, copies: int = 1) -> Epoch:
    """Return stock FFCV's epochs: its threads, its random order, its last short batch."""
    loader = StockLoader(
        str(info.path),
        batch_size=batch_size,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=0,
        indices=np.tile(np.arange(info.num_images, dtype=np.uint64), copies),
        pipelines={"image": [*decoders, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]},
        drop_last=False,
        batches_ahead=AHEAD,
    )

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in loader:
            # As our loader converts; it copies the labels too, for the ring is written again.
            yield pixels.permute(0, 3, 1, 2).float().div_(255), labels.clone()

    return epoch


def ours(info: BetonInfo, batch_size: int, workers: int, copies: int = 1, **data: Any) -> Epoch:
    """Return our loader's epochs, cut into batches as stock FFCV cuts them."""
    loader = Loader(
        info,
        DataConfig(train=info.path, validation=info.path, batches_ahead=AHEAD, **data),
        training=True,
        seed=0,
        max_batch_size=batch_size,
        device=torch.device("cpu"),
        num_workers=workers,
    )

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(copies * info.num_images, 0, number) % info.num_images
        batches = np.split(order, range(batch_size, len(order), batch_size))
        for batch in loader.batches(batches, epoch=number):
            yield batch.images, batch.labels

    return epoch


def images_per_second(epoch: Epoch, number: int, num_images: int, side: int) -> float:
    """Time one epoch, from asking for it to its last batch.

    Raises:
        RuntimeError: it had other batches than it should: then there is nothing to compare.
    """
    count = 0
    started = time.perf_counter()
    for images, labels in epoch(number):
        if images.shape[1:] != (3, side, side) or len(labels) != len(images):
            raise RuntimeError(f"images {tuple(images.shape)}, labels {tuple(labels.shape)}")
        count += len(images)
    seconds = time.perf_counter() - started
    if count != num_images:
        raise RuntimeError(f"{count} images in an epoch of {num_images}")
    return count / seconds


def measure(loaders: tuple[Epoch, Epoch], rounds: int, num_images: int, side: int) -> list[tuple[float, float]]:
    """Return (stock, ours) images per second of each round; the first round warms up and is dropped."""
    pairs = []
    for number in range(rounds + 1):
        # Who goes first alternates: a machine that slows down must not favour one of them.
        order = (0, 1) if number % 2 else (1, 0)
        rates = {index: images_per_second(loaders[index], number, num_images, side) for index in order}
        pairs.append((rates[0], rates[1]))
    return pairs[1:]


def report(name: str, pairs: list[tuple[float, float]]) -> Iterator[str]:
    """Yield the lines of one data set's result."""
    ratios = sorted(mine / theirs for theirs, mine in pairs)
    yield name
    yield f"stock FFCV {statistics.median(theirs for theirs, _ in pairs):9.0f} images/s"
    yield f"kapdist    {statistics.median(mine for _, mine in pairs):9.0f} images/s"
    yield (
        f"ratio {statistics.median(ratios):.3f} (median of {len(ratios)} paired rounds of one epoch, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def bench_fashion(path: Path, images: int, rounds: int, batch_size: int, workers: int) -> Iterator[str]:
    info = write_fashion(path, images)
    mine = ours(info, batch_size, workers, flip=True, translate=TRANSLATE)
    decoders = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(TRANSLATE)]
    pairs = measure((stock(info, decoders, batch_size, workers), mine), rounds, info.num_images, 32)
    yield from report(f"Fashion-MNIST, {info.num_images} raw images, 32 px, flip and translation", pairs)


def bench_stamps(
    path: Path, folder: Path, images: int, rounds: int, batch_size: int, workers: int
) -> Iterator[str]:
    if not folder.is_dir():
        yield f"photographs: skipped, there is no {folder} (Debian's package tuxpaint-stamps-default)"
        return
    info = write_stamps(folder, path, images)
    mine = ours(info, batch_size, workers, COPIES, crop="random-resized", resolution=CROP)
    decoders = [RandomResizedCropRGBImageDecoder((CROP, CROP))]
    loaders = stock(info, decoders, batch_size, workers, COPIES), mine
    pairs = measure(loaders, rounds, COPIES * info.num_images, CROP)
    name = f"photographs, {COPIES} times {info.num_images} JPEG images of at most {MAX_SIDE} px"
    yield from report(f"{name}, random resized crop to {CROP} px", pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=512, help="of Fashion-MNIST; photographs take a quarter")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="decoding threads of either loader")
    parser.add_argument("--images", type=int, default=0, help="of each data set; 0 takes all")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of class folders")
    options = parser.parse_args()
    # Stock FFCV sets torch's threads to its own number: the conversion has as many in both.
    torch.set_num_threads(options.workers)
    print("kapdist's loader beside stock FFCV's, images per second; goal: at least 0.95 of stock")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}")
    sizes = f"batches of {options.batch_size} and {max(1, options.batch_size // 4)}"
    print(f"runs:     {options.rounds} paired rounds; {options.workers} workers, {sizes}, float32 on the CPU")
    images, rounds, size, workers = (
        options.images or sys.maxsize,
        options.rounds,
        options.batch_size,
        options.workers,
    )
    with tempfile.TemporaryDirectory() as folder:
        for line in bench_fashion(Path(folder, "fashion.beton"), images, rounds, size, workers):
            print(line, flush=True)
        path = Path(folder, "stamps.beton")
        for line in bench_stamps(path, options.stamps, images, rounds, max(1, size // 4), workers):
            print(line, flush=True)


if __name__ == "__main__":
    main()
