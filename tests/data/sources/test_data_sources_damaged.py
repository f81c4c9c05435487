"""Files that are cut, flipped or locked: one line for the source, or an image of it that cannot be read."""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kapdist.data.sources import archives, make_source
from kapdist.data.sources.base import FileSource
from kapdist.data.sources.fashion import read_idx
from kapdist.data.sources.image import UnreadableImageError
from kapdist.errors import InputError

PLACES = 400  # of a file in which a byte is flipped, evenly spread


def zipped(root: Path) -> Path:
    shutil.make_archive(str(root / "tiny"), "zip", formats.tiny_imagenet(root / "tiny"))
    return root / "tiny.zip"


def of_words(root: Path) -> Path:
    table = {"image": [formats.jpeg(n) for n in range(4)], "label": ["b", "ä", "b", "c"]}
    pq.write_table(pa.table(table), root / "words.parquet", compression="zstd")
    return root / "words.parquet"


def of_the_hub(root: Path) -> Path:
    image = [{"bytes": formats.jpeg(n), "path": f"{n}.jpg"} for n in range(4)]
    pq.write_table(pa.table({"image": image, "label": [0, 1, 0, 1]}), root / "hub.parquet")
    return root / "hub.parquet"


def read(path: Path) -> int:
    """Read all that a writer reads of a source; return how many images cannot be read."""
    archives.open_archive.cache_clear()  # a file that changed within a tick of the clock
    source, bad = make_source(str(path)), 0
    assert isinstance(source, FileSource)
    for index in range(len(source)):
        try:
            source.item(index)
        except UnreadableImageError:
            bad += 1
    source.file_names()
    return bad


@pytest.mark.parametrize("make", [zipped, of_words, of_the_hub])
def test_a_flipped_byte_is_one_line_or_an_image_that_cannot_be_read(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    whole, refused = path.read_bytes(), 0
    assert read(path) == 0
    for at in np.linspace(0, len(whole) - 1, PLACES).astype(int).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            read(path)
        except InputError:
            refused += 1
    assert refused


# Of the local head and of the central one, of each file: where, and what makes it none that Python reads.
@pytest.mark.parametrize(
    ("local", "central", "value", "found"),
    [(6, 8, 1, "encrypted"), (8, 10, 99, "compression method")],
)
def test_an_image_in_a_zip_that_is_locked_or_newer(
    tmp_path: Path, local: int, central: int, value: int, found: str
) -> None:
    path = zipped(tmp_path)
    content, name = bytearray(path.read_bytes()), ""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith(".JPEG") and "train" in one.filename)
        name, head, start = info.filename, info.header_offset, archive.start_dir
    content[head + local] = value
    content[content.index(name.encode(), start) - 46 + central] = value
    path.write_bytes(content)
    source = make_source(str(path))
    index = next(index for index in range(len(source)) if name.endswith(source.image_name(index).split("!")[1]))
    with pytest.raises(UnreadableImageError, match=found):
        source.item(index)
    assert read(path) == 1


def test_a_damaged_page_of_labels_names_the_file(tmp_path: Path) -> None:
    path = of_the_hub(tmp_path)
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "label"
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"hub\.parquet: expected a whole Parquet file"):
        make_source(str(path))


def test_a_flipped_byte_in_a_gzip_of_numbers(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 4, 1000, np.uint8)
    whole = gzip.compress(b"\0\0\x08\x01\0\0\x03\xe8" + numbers.tobytes())
    for at in range(10, len(whole)):
        (tmp_path / "x.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(InputError, match="expected a gzip file"):
            read_idx(tmp_path / "x.gz")
