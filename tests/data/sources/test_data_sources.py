"""Sources: Fashion-MNIST and folders of class folders, every kind of image file."""

import gzip
import hashlib
import io
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kapdist.data.sources import class_folder, fashion_mnist, make_source
from kapdist.data.sources import fashion as sources
from kapdist.data.sources.image import UnreadableImageError, decode_image
from kapdist.errors import InputError


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Two classes, the second one nested, with files that are not images."""
    for name in ("b/1.png", "a/z/2.JPG", "a/z/10.png", "a/3.bmp", "a/y/deep/4.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(path)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._3.bmp").write_text("what another system leaves behind")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "list.txt").write_text("no folder")
    return tmp_path


def test_fashion_mnist_is_padded_and_repeated() -> None:
    source = fashion_mnist("test")
    image, label = source.item(0)
    assert len(source) == 10_000
    assert (image.shape, image.dtype, source.class_names[label]) == ((32, 32, 3), np.uint8, "Ankle boot")
    assert not image[:2].any()
    assert not image[:, -2:].any()
    assert (image == image[..., :1]).all()
    assert np.bincount(source.labels).tolist() == [1000] * 10


@pytest.mark.parametrize("content", [b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x0d\x01\0\0\0\x01a"])
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"x\.gz: expected"):
        sources.read_idx(tmp_path / "x.gz")
    (tmp_path / "x.gz").write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(InputError, match="expected a gzip file"):
        sources.read_idx(tmp_path / "x.gz")


def test_fashion_mnist_is_downloaded_where_debian_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, served = "t10k-labels-idx1-ubyte.gz", b"as served"
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sources.FASHION_MD5, name, hashlib.md5(served).hexdigest())
    asked = []
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda url, **_: asked.append(url) or io.BytesIO(served))
    assert sources.fashion_file(name).read_bytes() == served
    assert sources.fashion_file(name).is_relative_to(tmp_path)
    assert asked == [sources.MIRROR + name]  # the second time from the cache
    sources.fashion_file(name).write_bytes(b"damaged")
    assert sources.fashion_file(name).read_bytes() == served


def test_neither_debian_nor_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, **_: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources.urllib.request, "urlopen", offline)
    with pytest.raises(InputError, match=r"expected Debian's package .* found neither"):
        fashion_mnist("train")
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda url, **_: io.BytesIO(b"a login page"))
    with pytest.raises(InputError, match="expected MD5"):
        fashion_mnist("train")


def test_class_folders_have_torchvisions_order(nested: Path) -> None:
    source = class_folder(nested)
    assert source.class_names == ("a", "b")
    assert source.files == ["a/3.bmp", "a/y/deep/4.png", "a/z/10.png", "a/z/2.JPG", "b/1.png"]
    assert [source.item(index)[1] for index in range(len(source))] == [0, 0, 0, 0, 1]


def test_a_class_folder_without_images_is_refused_by_name(nested: Path) -> None:
    (nested / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"in every class folder, found none in empty$"):
        class_folder(nested)


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("fashion-mnits", "train", r"found fashion-mnits \(did you mean fashion-mnist\?\)"),
        ("/nowhere/at/all", "train", "or a folder of class folders, .* found /nowhere/at/all"),
        ("fashion-mnist", "val", "split: expected train or test, found val"),
        (".", "test", "split: expected no split of a folder"),
    ],
)
def test_sources_that_do_not_exist(source: str, split: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_source(source, split)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found a file"):
        make_source(str(tmp_path / "file"))
    with pytest.raises(InputError, match="found no folder in it"):
        class_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_files_are_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableImageError):
        decode_image(path.read_bytes())
    path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        decode_image(path.read_bytes())
