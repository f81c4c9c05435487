"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747): Debian's package, else a download."""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from kapdist.environment import cache_root
from kapdist.errors import InputError
from kapdist.run.files import write_atomic

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Of the compressed files, from the README of github.com/zalandoresearch/fashion-mnist.
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SPLITS = {"train": "train", "test": "t10k"}


class FashionMnist:
    """28 x 28 grey images, padded with black to 32 x 32 and repeated over three channels."""

    class_names: tuple[str, ...] = FASHION_CLASSES
    largest_bytes: int | None = 32 * 32 * 3

    def __init__(self, images: np.ndarray, labels: np.ndarray, split: str) -> None:
        self.name = f"fashion-mnist/{split}"
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> tuple[np.ndarray, int]:
        padded = np.pad(self.images[index], 2)
        return np.repeat(padded[:, :, None], 3, axis=2), int(self.labels[index])

    def image_name(self, index: int) -> str:
        return f"{self.name}/{index}"


def fashion_mnist(split: str = "train") -> FashionMnist:
    """Return Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), split train or test.

    Raises:
        InputError: an unknown split; no Debian package and no download.
    """
    if split not in SPLITS:
        raise InputError("split", " or ".join(SPLITS), split)
    prefix = SPLITS[split]
    images = read_idx(fashion_file(f"{prefix}-images-idx3-ubyte.gz"))
    labels = read_idx(fashion_file(f"{prefix}-labels-idx1-ubyte.gz"))
    return FashionMnist(images, labels, split)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes (gzip), as yann.lecun.com/exdb/mnist describes the format."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, "a gzip file", str(error)) from error
    if content[:3] != b"\0\0\x08":
        raise InputError(path, "an IDX file of unsigned bytes", f"a file that begins with {content[:4].hex()}")
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], ">u4").astype(int)
    values = np.frombuffer(content[header:], np.uint8)
    if values.size != shape.prod():
        raise InputError(path, f"{shape.prod()} values", str(values.size))
    return values.reshape(shape)


def fashion_file(name: str) -> Path:
    """Return the path of a file of Fashion-MNIST: Debian's, else the cache's, else a fresh download."""
    if (DEBIAN / name).exists():
        return DEBIAN / name
    root = cache_root()
    if root is None:
        raise InputError(
            "fashion-mnist", "Debian's package dataset-fashion-mnist, or a home to download to", "neither"
        )
    path = root / "fashion-mnist" / name
    if not path.exists() or md5(path.read_bytes()) != FASHION_MD5[name]:
        download(name, path)
    return path


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(name: str, path: Path) -> None:
    expected = f"Debian's package dataset-fashion-mnist or a download of {MIRROR}{name}"
    try:
        with urllib.request.urlopen(MIRROR + name, timeout=60) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise InputError("fashion-mnist", expected, f"neither ({error})") from error
    if md5(content) != FASHION_MD5[name]:
        raise InputError(MIRROR + name, f"MD5 {FASHION_MD5[name]}", md5(content))
    write_atomic(path, content)
