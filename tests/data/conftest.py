"""Small betons of real images, written once per session, and loaders on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo, open_beton
from kapdist.data.beton.write import write_beton
from kapdist.data.load.loader import Loader
from kapdist.data.sources import class_folder, fashion_mnist

STAMPS = Path("/usr/share/tuxpaint/stamps")
NUM_IMAGES = 300


@dataclass
class ArraySource:
    """Images in memory; `bad` maps an index to what reading it does."""

    images: list[np.ndarray]
    labels: list[int]
    bad: dict[int, Callable[[], None]]
    name: str = "arrays"
    class_names: tuple[str, ...] = ("a", "b")
    largest_bytes: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int) -> tuple[np.ndarray, int]:
        if index in self.bad:
            self.bad[index]()
        return self.images[index], self.labels[index]

    def image_name(self, index: int) -> str:
        return f"array-{index}"


@pytest.fixture(scope="session")
def array_source() -> Callable[..., ArraySource]:
    """Make a source of `count` random images; bad={index: function that reading it calls}."""

    def make(count: int = 40, side: int = 16, bad: dict[int, Callable[[], None]] | None = None) -> ArraySource:
        random = np.random.default_rng(0)
        images = [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
        return ArraySource(images, [index % 2 for index in range(count)], bad or {})

    return make


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """The images of the beton `fashion`, (300, 32, 32, 3) uint8, padded without the code under test."""
    grey = fashion_mnist("test").images[:NUM_IMAGES]
    out = np.zeros((NUM_IMAGES, 32, 32, 3), np.uint8)
    out[:, 2:30, 2:30] = grey[..., None]
    return out


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> BetonInfo:
    """The first 300 test images of Fashion-MNIST, raw."""
    source = fashion_mnist("test")
    source.images, source.labels = source.images[:NUM_IMAGES], source.labels[:NUM_IMAGES]
    path = tmp_path_factory.mktemp("fashion") / "fashion.beton"
    write_beton(source, path, num_workers=2)
    return open_beton(path)


@pytest.fixture
def copied(fashion: BetonInfo, tmp_path: Path) -> Path:
    """A copy of `fashion` that a test may damage."""
    for suffix in ("", ".json"):
        shutil.copy(f"{fashion.path}{suffix}", tmp_path / f"copy.beton{suffix}")
    return tmp_path / "copy.beton"


@pytest.fixture(scope="session")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two class folders with 36 PNG files of many sizes, some nested, some with alpha."""
    if not STAMPS.is_dir():
        pytest.skip("Debian's package tuxpaint-stamps-default is not installed")
    root = tmp_path_factory.mktemp("stamps")
    for name in ("food", "space"):
        for file in sorted((STAMPS / name).rglob("*.png"))[:20]:
            target = root / name / file.relative_to(STAMPS / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return root


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory, stamps: Path) -> BetonInfo:
    """The stamps as JPEG of at most 200 pixels."""
    path = tmp_path_factory.mktemp("photographs") / "stamps.beton"
    write_beton(class_folder(stamps), path, max_side=200, jpeg_quality=90, num_workers=2)
    return open_beton(path)


@pytest.fixture(scope="session")
def raw_photographs(tmp_path_factory: pytest.TempPathFactory, stamps: Path) -> BetonInfo:
    """The stamps as raw pixels, at most 200 a side."""
    path = tmp_path_factory.mktemp("photographs") / "raw.beton"
    write_beton(class_folder(stamps), path, max_side=200, num_workers=2)
    return open_beton(path)


@pytest.fixture(scope="session")
def make_loader() -> Callable[..., Loader]:
    """Make a loader; keyword arguments that are DataConfig's go there."""

    def make(info: BetonInfo, *, training: bool = True, seed: int = 0, num_workers: int = 1, **config) -> Loader:
        max_batch_size = config.pop("max_batch_size", 64)
        channels_last = config.pop("channels_last", True)
        return Loader(
            info,
            DataConfig(train=info.path, validation=info.path, **config),
            training=training,
            seed=seed,
            max_batch_size=max_batch_size,
            device=torch.device("cpu"),
            num_workers=num_workers,
            channels_last=channels_last,
        )

    return make


@pytest.fixture(scope="session")
def read_all() -> Callable[..., np.ndarray]:
    """Return the images of a pass as (num_images, side, side, 3) uint8, at the places of their ids."""

    def read(loader: Loader, batches: list[np.ndarray], epoch: int = 0) -> np.ndarray:
        side = loader.config.resolution
        out = np.zeros((loader.info.num_images, side, side, 3), np.uint8)
        for batch in loader.batches(batches, epoch=epoch):
            out[batch.indices] = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return out

    return read
