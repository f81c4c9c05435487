"""The loaders that bench_loader.py compares, each as a function of the epoch's number, and the images they read."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo, open_beton, stored_bytes
from kapdist.data.beton.write import write_beton
from kapdist.data.load.loader import Loader
from kapdist.data.load.order import epoch_order
from kapdist.data.sources import class_folder, fashion_mnist

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields.basics import IntDecoder  # isort: skip
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder  # isort: skip
from ffcv.loader import Loader as StockLoader  # isort: skip
from ffcv.loader import OrderOption  # isort: skip
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor  # isort: skip

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]

AHEAD = 3  # batches; all loaders' default
STAMPS = Path("/usr/share/tuxpaint/stamps")
SIDE, QUALITY = 500, 90  # of the photographs: ffcv-imagenet's


@dataclass(frozen=True)
class Setting:
    """What every loader of photographs is given: the same JPEG bytes, as a beton and as files."""

    info: BetonInfo
    files: Path
    side: int
    batch_size: int
    workers: int
    copies: int = 1  # of every image in an epoch


class Enlarged:
    """A source whose images have a longer side of `side` pixels: drawings that take as long as photographs."""

    largest_bytes: int | None = None

    def __init__(self, folder: Path, side: int, images: int) -> None:
        self.source, self.side = class_folder(folder), side
        chosen = epoch_order(len(self.source), 0, 0)[:images]  # of all classes
        self.indices = np.sort(chosen)
        self.name, self.class_names = self.source.name, self.source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> tuple[np.ndarray, int]:
        pixels, label = self.source.item(int(self.indices[index]))
        image = Image.fromarray(pixels)
        scale = self.side / max(image.size)
        size = [max(1, round(scale * length)) for length in image.size]
        return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC)), label

    def image_name(self, index: int) -> str:
        return self.source.image_name(int(self.indices[index]))


def write_photographs(folder: Path, path: Path, side: int, quality: int, images: int) -> BetonInfo:
    return write_stored(folder, path, side, images, jpeg_quality=quality)


def write_stored(folder: Path, path: Path, side: int, images: int, **store: Any) -> BetonInfo:
    """Write photographs of a longer side, stored as write_beton is told."""
    write_beton(Enlarged(folder, side, images), path, skip_unreadable=True, **store)
    return open_beton(path)


def write_fashion(path: Path, images: int) -> BetonInfo:
    source = fashion_mnist("train")
    source.images, source.labels = source.images[:images], source.labels[:images]
    write_beton(source, path)
    return open_beton(path)


def as_files(info: BetonInfo, folder: Path) -> None:
    """Write a beton's JPEG bytes as class folders: the same bytes for every loader."""
    data, layout = stored_bytes(info.path), info.layout
    for index, label in enumerate(layout.labels):
        place = folder / f"{label:03d}"
        place.mkdir(parents=True, exist_ok=True)
        start = layout.offsets[index]
        (place / f"{index:06d}.jpg").write_bytes(data[start : start + layout.sizes[index]].tobytes())


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


class PillowFolder(Dataset):
    """What torchvision's ImageFolder does with RandomResizedCrop, RandomHorizontalFlip and ToTensor, on Pillow.

    The same steps in the same libraries (Pillow opens, crops and resizes, torch draws), for machines without it.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self.side = side
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        self.samples = [
            (path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, width, height = self.window(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255), label

    @staticmethod
    def window(width: int, height: int) -> tuple[int, int, int, int]:
        log_ratio = torch.log(torch.tensor((3 / 4, 4 / 3)))
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
            ratio = torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,)))
                return int(torch.randint(0, width - w + 1, (1,))), top, w, h
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


def image_folder(folder: Path, side: int) -> tuple[str, Dataset]:
    """Return torchvision's own ImageFolder where it can be imported, else what it does, and which of them it is."""
    try:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder
    except Exception:  # a torchvision that was built for another torch raises RuntimeError
        return "ImageFolder (Pillow, as torchvision does it)", PillowFolder(folder, side)
    steps = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return "ImageFolder (torchvision)", ImageFolder(str(folder), transforms.Compose(steps))


def data_loader(dataset: Dataset, batch_size: int, workers: int, copies: int) -> Epoch:
    """Return a torch DataLoader's epochs, its worker processes kept from one to the next."""
    loader: DataLoader = DataLoader(
        ConcatDataset([dataset] * copies),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=AHEAD,
    )

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from loader

    return epoch


def stock_photographs(given: Setting) -> Epoch:
    decoders = [RandomResizedCropRGBImageDecoder((given.side, given.side)), RandomHorizontalFlip()]
    return stock(given.info, decoders, given.batch_size, given.workers, given.copies)


def our_photographs(given: Setting, **data: Any) -> Epoch:
    crops = {"crop": "random-resized", "resolution": given.side, "flip": True}
    return ours(given.info, given.batch_size, given.workers, given.copies, **crops, **data)


def folder_photographs(given: Setting) -> Epoch:
    _, dataset = image_folder(given.files, given.side)
    return data_loader(dataset, given.batch_size, given.workers, given.copies)


LOADERS: dict[str, Callable[[Setting], Epoch]] = {
    "stock FFCV": stock_photographs,
    "kapdist, full": our_photographs,
    "kapdist, reduced": functools.partial(our_photographs, decode="reduced"),
    "kapdist without FFCV, full": functools.partial(our_photographs, backend="torch"),
    "kapdist without FFCV, reduced": functools.partial(our_photographs, backend="torch", decode="reduced"),
    "ImageFolder": folder_photographs,
}
