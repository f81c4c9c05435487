"""What writing a beton costs: images per second beside the rate at which the same cores make JPEG files.

    python tools/bench_write.py [--rounds 7] [--workers N] [--copies 4] [--stamps FOLDER]

The photographs are Debian's tuxpaint stamps, over white, enlarged to a longer side of 500 pixels. A round is, in an
order that alternates: their JPEG encoding at quality 90 alone (FFCV's `encode_jpeg`), by as many processes, timed
from when all of them are ready to when the last one is done; the same written by stock FFCV's writer; by ours; ours
from JPEG files that are kept as they are; and ours from JPEG files that are decoded, shrunk to 256 pixels, encoded.
Writing is timed whole: processes, checksums, sha256 of the file, manifest. A ratio is to the encoding of the same
round. Where others use the machine, the CPU seconds say more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from bench_step import machine
from PIL import Image

from kapdist.data.beton.board import fork
from kapdist.data.beton.write import write_beton
from kapdist.data.sources import Source, class_folder
from kapdist.data.sources.folder import ClassFolder
from kapdist.environment import usable_cpus

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields import IntField, RGBImageField  # isort: skip
from ffcv.writer import DatasetWriter  # isort: skip

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields.rgb_image import encode_jpeg  # isort: skip

STAMPS = Path("/usr/share/tuxpaint/stamps")
SIDE, SMALL_SIDE, QUALITY, CHUNK = 500, 256, 90, 16
GOAL = 0.8
Timed = Callable[[], float]


class Photographs:
    """Pixels in memory, each of them several times."""

    name: str = "photographs"
    class_names: tuple[str, ...] = ("stamp",)
    largest_bytes: int | None = 3 * SIDE * SIDE

    def __init__(self, images: list[np.ndarray], copies: int) -> None:
        self.images, self.copies = images, copies

    def __len__(self) -> int:
        return len(self.images) * self.copies

    def item(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index % len(self.images)], 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:  # stock FFCV's face
        return self.item(index)

    def image_name(self, index: int) -> str:
        return f"photograph {index}"


class Files(ClassFolder):
    """JPEG files on disk, each of them several times."""

    def repeated(self, copies: int) -> Files:
        self.files, self.labels = self.files * copies, np.tile(self.labels, copies)
        return self


def photographs(folder: Path) -> list[np.ndarray]:
    """Return the stamps as (height, width, 3) uint8 RGB with a longer side of SIDE."""
    images, source = [], class_folder(folder)
    for index in range(len(source)):
        with contextlib.suppress(OSError), Image.open(io.BytesIO(source.content(index))) as image:
            rgba = image.convert("RGBA")
            white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            width, height = (max(1, round(side * SIDE / max(rgba.size))) for side in rgba.size)
            images.append(np.asarray(white.resize((width, height), Image.Resampling.BICUBIC)))
    return images


def encoding(source: Photographs, workers: int, *, bgr: bool = False) -> float:
    """Return the seconds in which the processes make every image a JPEG; BGR is what OpenCV itself takes."""
    ready, taken, ends = fork.Barrier(workers + 1), fork.Value("q", 0), fork.SimpleQueue()
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in source.images] if bgr else source.images

    def encode(index: int) -> None:
        image = images[index % len(images)]
        if bgr:
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        else:
            encode_jpeg(image, QUALITY)

    def work() -> None:
        ready.wait()
        while True:
            with taken.get_lock():
                begin = int(taken.value)
                taken.value += CHUNK
            if begin >= len(source):
                break
            for index in range(begin, min(begin + CHUNK, len(source))):
                encode(index)
        ends.put(time.monotonic())

    processes = [fork.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.monotonic()
    last = max(ends.get() for _ in processes)
    for process in processes:
        process.join()
    return last - started


def stock(source: Photographs, path: Path, workers: int) -> float:
    """Return the seconds of stock FFCV's own writer."""
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY), "label": IntField()}
    started = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()):
        DatasetWriter(str(path), fields, num_workers=workers).from_indexed_dataset(source)
    return time.monotonic() - started


def written(source: Source, path: Path, workers: int, max_side: int = SIDE) -> float:
    """Return the seconds of our writer, to the manifest's end."""
    started = time.monotonic()
    write_beton(source, path, max_side=max_side, jpeg_quality=QUALITY, num_workers=workers)
    return time.monotonic() - started


def save(images: list[np.ndarray], folder: Path) -> Files:
    (folder / "jpeg" / "stamp").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "jpeg" / "stamp" / f"{number:04}.jpg", quality=QUALITY)
    return Files(folder / "jpeg")


def cpu_seconds() -> float:
    """Return what this process and its ended children have used."""
    for child in multiprocessing.active_children():  # stock FFCV does not wait for its own
        child.join()
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(what: dict[str, Timed], rounds: int, images: int) -> dict[str, list[tuple[float, float]]]:
    """Return (images per second, per CPU second) of each in each round; the first one warms up and is dropped."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in what}
    for number in range(rounds + 1):
        # Who goes first alternates: a machine that slows down must not favour one of them.
        for name, run in list(what.items())[:: 1 if number % 2 else -1]:
            before = cpu_seconds()
            seconds = run()
            if number:
                rates[name].append((images / seconds, images / (cpu_seconds() - before)))
    return rates


def report(rates: dict[str, list[tuple[float, float]]]) -> None:
    bare = next(iter(rates.values()))
    print(f"{'':34} images/s  ratio  smallest to largest   per CPU second  ratio")
    for name, found in rates.items():
        columns = []
        for kind in (0, 1):
            ratios = sorted(mine[kind] / base[kind] for mine, base in zip(found, bare, strict=True))
            columns.append((statistics.median(rate[kind] for rate in found), statistics.median(ratios), ratios))
        (rate, ratio, spread), (cpu_rate, cpu_ratio, _) = columns
        words = f"{spread[0]:.3f} to {spread[-1]:.3f}"
        print(f"{name:34} {rate:8.0f}  {ratio:.3f}  {words:20} {cpu_rate:15.0f}  {cpu_ratio:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes of each")
    parser.add_argument("--copies", type=int, default=4, help="of every photograph")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of class folders")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # a process per core; and OpenCV's threads do not survive a fork
    if not options.stamps.is_dir():
        print(f"skipped, there is no {options.stamps} (Debian's package tuxpaint-stamps-default)")
        return
    images, workers = photographs(options.stamps), options.workers
    source = Photographs(images, options.copies)
    print(f"writing a beton beside the cores' JPEG encoding; goal: pixels at least {GOAL} of it")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}")
    print(
        f"runs:     {options.rounds} paired rounds of {len(source)} images ({len(images)} photographs), "
        f"{workers} workers"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.beton")
        files = save(images, Path(folder)).repeated(options.copies)
        what: dict[str, Timed] = {
            "JPEG encoding alone": lambda: encoding(source, workers),
            "the same from BGR pixels": lambda: encoding(source, workers, bgr=True),
            "stock FFCV, pixels": lambda: stock(source, path, workers),
            "kapdist, pixels": lambda: written(source, path, workers),
            "kapdist, JPEG files as they are": lambda: written(files, path, workers),
            f"kapdist, JPEG files shrunk to {SMALL_SIDE}": lambda: written(files, path, workers, SMALL_SIDE),
        }
        report(measure(what, options.rounds, len(source)))


if __name__ == "__main__":
    main()
