"""Odd image files: read as torchvision reads them, pixel by pixel, or refused with the reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kapdist.data.beton.encode import decodes, jpeg_size
from kapdist.data.beton.layout import open_beton, stored_bytes
from kapdist.data.beton.write import write_beton
from kapdist.data.load.ffcv import lib
from kapdist.data.load.pixels import FULL
from kapdist.data.sources import class_folder
from kapdist.data.sources.image import UnreadableImageError, decode_image

SIDE = 24
GREY = np.add.outer(np.arange(SIDE) * 5, np.arange(SIDE) * 5).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY.T // 2], axis=2)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    return exif


def with_alpha() -> Image.Image:
    image = Image.fromarray(COLOUR).convert("RGBA")
    image.putalpha(Image.fromarray(GREY))
    return image


def palette() -> Image.Image:
    return Image.fromarray(COLOUR).quantize(7)


PHOTO = Image.fromarray(COLOUR)
QUIRKS = {
    "plain.JPEG": saved(PHOTO, "JPEG", quality=95),
    "progressive.JPEG": saved(PHOTO, "JPEG", progressive=True),
    "grey.JPEG": saved(Image.fromarray(GREY), "JPEG"),
    "cmyk.JPEG": saved(PHOTO.convert("CMYK"), "JPEG"),
    "turned.JPEG": saved(PHOTO, "JPEG", exif=turned()),
    "a-png-named.JPEG": saved(PHOTO, "PNG"),
    "a-jpeg-named.png": saved(PHOTO, "JPEG"),
    "alpha.png": saved(with_alpha(), "PNG"),
    "grey-alpha.png": saved(with_alpha().convert("LA"), "PNG"),
    "palette.png": saved(palette(), "PNG"),
    "palette-alpha.png": saved(palette(), "PNG", transparency=bytes(range(7))),
    "grey.png": saved(Image.fromarray(GREY), "PNG"),
    "one-bit.png": saved(Image.fromarray(GREY > 99), "PNG"),
    "sixteen-bit-colour.ppm": b"P6 2 1 65535\n" + bytes(range(12)),
    "cmyk.tif": saved(PHOTO.convert("CMYK"), "TIFF"),
    "animated.gif": saved(PHOTO, "GIF", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
}


def pil_loader(path: Path) -> np.ndarray:
    """What torchvision/datasets/folder.py's function of that name does."""
    with path.open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def quirks(tmp_path: Path) -> Path:
    root = tmp_path / "quirks"
    for number, (name, content) in enumerate(QUIRKS.items()):
        path = root / f"class{number % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_pixels_are_those_of_torchvisions_loader(quirks: Path) -> None:
    source = class_folder(quirks)
    assert len(source) == len(QUIRKS)
    for index in range(len(source)):
        assert np.array_equal(source.item(index)[0], pil_loader(quirks / source.files[index])), source.files[index]


def test_the_order_is_that_of_torchvisions_image_folder(quirks: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets", exc_type=ImportError)
    (quirks / "class0" / "animated.gif").unlink()  # torchvision passes GIF files over
    theirs, ours = datasets.ImageFolder(str(quirks)), class_folder(quirks)
    assert tuple(theirs.classes) == ours.class_names
    assert [(str(Path(path).relative_to(quirks)), label) for path, label in theirs.samples] == [
        (name, int(label)) for name, label in zip(ours.files, ours.labels, strict=True)
    ]
    for index, (image, label) in enumerate(theirs):
        assert np.array_equal(np.asarray(image), ours.item(index)[0])
        assert label == ours.item(index)[1]


def test_jpeg_bytes_stay_as_they_are_where_ffcv_can_read_them(quirks: Path, tmp_path: Path) -> None:
    source = class_folder(quirks)
    summary = write_beton(source, tmp_path / "x.beton", jpeg_quality=90, num_workers=2)
    info = open_beton(tmp_path / "x.beton")
    data, kept = stored_bytes(info.path), set()
    for index, (start, size) in enumerate(zip(info.layout.offsets, info.layout.sizes, strict=True)):
        content = data[start : start + size].tobytes()
        if content == source.content(index):
            kept.add(Path(source.files[index]).name)
        else:
            # Encoded once, from the pixels that torchvision would have: that close at quality 90.
            error = np.abs(decode_image(content).astype(int) - source.item(index)[0])
            assert error.mean() < 12, source.files[index]
    assert kept == {"plain.JPEG", "progressive.JPEG", "grey.JPEG", "turned.JPEG", "a-jpeg-named.png"}
    assert summary["stored"]["jpeg_as_it_was"] == len(kept)
    assert summary["stored"]["jpeg_encoded"] == len(QUIRKS) - len(kept)


def test_a_jpeg_beyond_the_side_limit_is_encoded_again(quirks: Path, tmp_path: Path) -> None:
    summary = write_beton(class_folder(quirks), tmp_path / "x.beton", jpeg_quality=90, max_side=SIDE - 1)
    assert summary["stored"]["jpeg_as_it_was"] == 0
    assert max(summary["largest"]) == SIDE - 1


@pytest.mark.parametrize(
    ("image", "mode"), [(GREY.astype(np.uint16) * 257, "I;16"), (GREY.astype(np.float32), "F")]
)
def test_pixels_that_pillow_would_clip_are_refused(image: np.ndarray, mode: str) -> None:
    kind = "PNG" if mode == "I;16" else "TIFF"
    with pytest.raises(UnreadableImageError, match=rf"more than 8 bits \(Pillow's mode {mode}\)"):
        decode_image(saved(Image.fromarray(image), kind))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(QUIRKS)), st.floats(0, 1), st.binary(max_size=4))
def test_a_damaged_file_is_read_as_pillow_reads_it_or_refused(name: str, cut: float, junk: bytes) -> None:
    content = QUIRKS[name]
    damaged = content[: int(cut * len(content))] + junk
    try:
        expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
    except Exception:
        with pytest.raises(UnreadableImageError):
            decode_image(damaged)
    else:
        assert np.array_equal(decode_image(damaged), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(QUIRKS["plain.JPEG"]) - 1), st.integers(1, 255))
def test_a_jpeg_that_is_kept_decodes_for_ffcv(at: int, flip: int) -> None:
    """Whatever byte is flipped: kept files are those that FFCV's decoder reads in full, at full size as well."""
    damaged = bytearray(QUIRKS["plain.JPEG"])
    damaged[at] ^= flip
    size = jpeg_size(bytes(damaged))
    if size is None or max(size) > 4 * SIDE:
        return
    assert decodes(bytes(damaged), 0, *size) == ffcv_decodes(bytes(damaged), *size)
    if decodes(bytes(damaged), 0, *size):
        assert decode_image(bytes(damaged)).shape == (*size, 3)


def ffcv_decodes(content: bytes, height: int, width: int) -> bool:
    """Whether libffcv reads a JPEG to its end, at full size, without a warning."""
    out = np.empty((height, width, 3), np.uint8)
    sizes = height, width, out.ctypes.data, height, width, 0, 0, FULL, FULL, False, False
    return lib.imdecode(content, len(content), *sizes) == 0
