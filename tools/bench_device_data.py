"""Loading where a GPU is: images kept on the device beside the loader's, and stores beside one another.

    python tools/bench_device_data.py [--device cuda] [--workers N] [--rounds 3] [--times 12] [--seconds 600]

Needs torch, numba and simplejpeg, and neither FFCV nor OpenCV: it writes betons of random images itself. First the
pixels: on_device's must be the loader's, byte for byte (exit code 1 where they are not). Then images per second,
paired, in turn: raw 32 px images with flip and translation, without RandAugment and with it, and 64 px ones with
random resized crops, kept on the device and loaded; smooth images of 256 px as JPEG of quality 90, raw and YCbCr,
cropped to 160 px, and JPEG ones of 500 px. At last an epoch of `kapdist train` with each. Nothing new is begun
after --seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare box has no kapdist installed

from kapdist.config import Config, DataConfig
from kapdist.data.beton import container
from kapdist.data.beton.checksum import checksums
from kapdist.data.beton.layout import JPEG, RAW, YCBCR, BetonInfo, open_beton, read_layout
from kapdist.data.beton.manifest import Manifest, content_fingerprint, write_manifest
from kapdist.data.load.loader import Loader
from kapdist.data.load.order import epoch_order
from kapdist.data.load.ycbcr import planes
from kapdist.environment import usable_cpus
from kapdist.run.files import file_sha256

PAGE, QUALITY, CLASSES = 1 << 21, 90, 10
CROPS: dict[str, Any] = {"crop": "random-resized", "flip": True}
ALL: dict[str, Any] = {"flip": True, "translate": 3, "cutout": 9, "erasing": 0.5}
RAMP: dict[str, Any] = {"min_resolution": 32, "max_resolution": 64}
VARIED: dict[str, Any] = {"flip": True, "translate": 2, "rand_augment": 2}


def jpeg(image: np.ndarray) -> np.ndarray:
    import simplejpeg

    return np.frombuffer(simplejpeg.encode_jpeg(image, QUALITY, colorsubsampling="420"), np.uint8)


STORES: dict[int, Callable[[np.ndarray], np.ndarray]] = {JPEG: jpeg, RAW: np.ravel, YCBCR: planes}


def write(path: Path, images: list[np.ndarray], mode: int, times: int = 1) -> BetonInfo:
    """Write images, (height, width, 3) uint8, several times over, to a beton and its manifest."""
    stored = [STORES[mode](image) for image in images]
    records = np.zeros(times * len(images), container.RECORD)
    sizes = np.array([len(one) for one in stored] * times)
    records["size"], records["mode"], records["label"] = sizes, mode, np.arange(len(records)) % CLASSES
    records["height"] = [len(image) for image in images] * times
    records["width"] = [image.shape[1] for image in images] * times
    start = container.data_start(len(records), PAGE)
    begins, end = container.place(0, sizes, PAGE)
    container.begin(path, len(records), PAGE)
    content = np.zeros(start + end, np.uint8)
    for number, begin in enumerate(begins.tolist()):
        content[start + begin : start + begin + sizes[number]] = stored[number % len(stored)]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content[start:].tobytes())
    container.finish(path, records, begins, end, start, PAGE)
    content.flags.writeable = False
    sums, names = checksums(content, start + begins, sizes), tuple(map(str, range(CLASSES)))
    shape = images[0].shape[:2]
    write_manifest(
        path,
        Manifest(
            source="random images",
            num_images=len(records),
            class_names=names,
            per_class=tuple(np.bincount(records["label"], minlength=CLASSES).tolist()),
            smallest=shape,
            largest=shape,
            encoding="random",
            max_side=None,
            skipped=(),
            size_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            layout_sha256=read_layout(path).sha256,
            fingerprint=content_fingerprint(sums, records["label"], names),
            packages={},
            checksums=sums,
        ),
    )
    return open_beton(path)


def random_images(count: int, height: int, width: int, cell: int = 1) -> list[np.ndarray]:
    """Return images whose colours change smoothly over cells of so many pixels, as photographs' do."""
    random = np.random.default_rng(0)
    shape = count, -(-height // cell) + 1, -(-width // cell) + 1, 3
    coarse = torch.from_numpy(random.integers(0, 256, shape).astype(np.float32)).permute(0, 3, 1, 2)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=cell, mode="bilinear") if cell > 1 else coarse
    noise = random.normal(0, 4, (count, height, width, 3)) if cell > 1 else 0
    images = fine[:, :, :height, :width].permute(0, 2, 3, 1).numpy() + noise
    return list(images.clip(0, 255).astype(np.uint8))


class Bench:
    """The betons, and loaders on them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.device = options, folder, torch.device(options.device)
        self.begin = time.monotonic()

    @property
    def late(self) -> bool:
        return time.monotonic() - self.begin > self.options.seconds

    def loader(self, info: BetonInfo, batch_size: int = 512, training: bool = True, **data: Any) -> Loader:
        config = DataConfig(train=info.path, validation=info.path, backend="torch", **data)
        workers = self.options.workers
        return Loader(
            info,
            config,
            training=training,
            seed=1,
            max_batch_size=batch_size,
            device=self.device,
            num_workers=workers,
        )

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, loader: Loader, batch_size: int, epoch: int) -> float:
        """Return images per second of an epoch, from asking for it until the device has the last one."""
        order = epoch_order(loader.info.num_images, 1, epoch)
        batches = np.split(order, range(batch_size, len(order), batch_size))
        self.wait()
        begin = time.perf_counter()
        for _ in loader.batches(batches, epoch=epoch):
            pass
        self.wait()
        return len(order) / (time.perf_counter() - begin)

    def compare(self, loaders: dict[str, Loader], batch_size: int) -> Iterator[str]:
        """Yield each loader's rate and its ratio to the last one's, medians over rounds; the first is dropped."""
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for epoch in range(self.options.rounds + 1):
            for name in loaders if epoch % 2 else reversed(loaders):
                rates[name].append(self.rate(loaders[name], batch_size, epoch))
        last = list(loaders)[-1]
        for name, found in rates.items():
            ratio = statistics.median(a / b for a, b in zip(found[1:], rates[last][1:], strict=True))
            yield f"  {name:28} {statistics.median(found[1:]):10.0f} images/s, {ratio:6.2f} of {last}"

    def pixels(self) -> Iterator[str]:
        """Yield whether on_device gives the loader's bytes."""
        small = write(self.folder / "small.beton", random_images(300, 32, 32), RAW)
        odd = write(self.folder / "odd.beton", random_images(60, 71, 53), RAW)
        settings: dict[str, tuple[BetonInfo, dict[str, Any], dict[str, Any]]] = {
            "flip, translation": (small, {"flip": True, "translate": 2}, {}),
            "cut-out and erasing too": (small, ALL, {}),
            "and RandAugment": (small, {**ALL, **VARIED}, {}),
            "random resized crops": (odd, {**CROPS, "resolution": 48}, {}),
            "all of it at 64 px of a ramp": (odd, {**CROPS, **ALL, **VARIED, **RAMP}, {}),
            "evaluation": (odd, {"crop": "random-resized", "resolution": 48}, {"training": False}),
        }
        for mode, name in ((JPEG, "JPEG"), (YCBCR, "YCbCr")):
            info = write(self.folder / f"odd-{name}.beton", random_images(60, 71, 53, 8), mode)
            settings[f"{name}, random resized crops"] = info, {**CROPS, "resolution": 48}, {}
        for name, (info, data, more) in settings.items():
            batches = np.array_split(epoch_order(info.num_images, 1, 3), 3)
            side = data.get("max_resolution", data.get("resolution"))
            loaded, kept = (
                [batch.images.cpu() for batch in loader.batches(batches, epoch=3, resolution=side)]
                for loader in (self.loader(info, **data, **more), self.loader(info, on_device=True, **data, **more))
            )
            wrong = sum(int((a != b).sum()) for a, b in zip(loaded, kept, strict=True))
            yield f"  {'same' if not wrong else f'WRONG: {wrong} values'}: {name}"

    def small_sets(self) -> Iterator[str]:
        sets: tuple[tuple[str, int, int, int, dict[str, Any]], ...] = (
            ("32 px raw, flip, translation", 32, 5000, self.options.times, {"flip": True, "translate": 2}),
            ("32 px raw, RandAugment too", 32, 5000, self.options.times, VARIED),
            ("64 px raw, random resized crop", 64, 2000, self.options.times, {**CROPS, "resolution": 64}),
        )
        for name, side, count, times, data in sets:
            if self.late:
                return
            path = self.folder / f"set-{side}.beton"
            info = open_beton(path) if path.exists() else write(path, random_images(count, side, side), RAW, times)
            yield f"{info.num_images} images, {name}, batches of 512"
            kept = self.loader(info, on_device=True, **data)
            yield from self.compare({"on the device": kept, "loaded": self.loader(info, **data)}, 512)

    def stores(self) -> Iterator[str]:
        if self.late:
            return
        images, large = random_images(100, 192, 256, 16), random_images(50, 375, 500, 24)
        names = {"YCbCr": YCBCR, "raw": RAW, "JPEG": JPEG}
        loaders = {}
        for name, mode in names.items():
            info = write(self.folder / f"{name}.beton", images, mode, 3 * self.options.times)
            loaders[f"{name}, 256 px"] = self.loader(info, 256, **CROPS, resolution=160)
        info = write(self.folder / "large.beton", large, JPEG, 3 * self.options.times)
        loaders["JPEG, 500 px"] = self.loader(info, 256, **CROPS, resolution=160)
        yield "photographs of 256 px and 500 px, random resized crops to 160 px, batches of 256"
        yield from self.compare(loaders, 256)

    def training(self) -> Iterator[str]:
        """Yield the images per second of an epoch of training with each, as metrics.jsonl has them."""
        from kapdist.train.loop import train

        yield "kapdist train, one epoch, images/s of its steps and seconds in all"
        settings: list[tuple[str, dict[str, Any], int]] = [
            *(("set-32", {"flip": True, "translate": 2, "on_device": kept}, 512) for kept in (True, False)),
            *((name, {**CROPS, "resolution": 160}, 256) for name in ("YCbCr", "raw", "JPEG")),
        ]
        for number, (beton, data, batch_size) in enumerate(settings):
            path = self.folder / f"{beton}.beton"
            if self.late or not path.exists():
                return
            config = Config.model_validate(
                {
                    "name": f"run-{number}",
                    "runs_dir": self.folder / "runs",
                    "data": {"train": path, "validation": self.folder / "small.beton", "backend": "torch", **data},
                    "model": {"name": "resnet10", "num_classes": CLASSES, "width": 0.25},
                    "train": {"epochs": 1, "batch_size": batch_size, "log_every_steps": 5},
                    "optim": {"warmup_epochs": 0.5, "lr": 0.01},
                    "engine": {"device": self.options.device},
                }
            )
            begin = time.perf_counter()
            train(config)
            seconds = time.perf_counter() - begin
            lines = (self.folder / "runs" / config.name / "metrics.jsonl").read_text().splitlines()
            rates = [value for line in lines if (value := json.loads(line).get("images_per_second"))]
            kept = ", on the device" if data.get("on_device") else ""
            yield f"  {beton + kept:28} {statistics.median(rates[1:] or rates):10.0f} images/s, {seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="decoding threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=12, help="how often each data set has each of its images")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing new after so long")
    options = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        print(
            f"{options.device}, {options.workers} workers, torch {torch.__version__}; on_device beside the loader:"
        )
        for part in (bench.pixels, bench.small_sets, bench.stores, bench.training):
            for line in part():
                wrong = wrong or "WRONG" in line
                print(line, flush=True)
            print(f"[{time.monotonic() - bench.begin:.1f} s]", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
