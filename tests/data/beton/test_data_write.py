"""Writing: what stock FFCV would write, whoever writes it, however often it is killed."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kapdist.data.beton.board import fork
from kapdist.data.beton.check import check
from kapdist.data.beton.container import data_start, place
from kapdist.data.beton.encode import SMALLEST_PAGE, Encoding
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.parts import PARTS
from kapdist.data.beton.write import write, write_beton
from kapdist.data.sources import Columns, fashion_mnist
from kapdist.errors import InputError
from kapdist.run.lock import locked

# Only after kapdist.data: its guard keeps FFCV's import from changing torch's threads.
from ffcv.fields import IntField, RGBImageField  # isort: skip
from ffcv.writer import DatasetWriter  # isort: skip

LIMIT_SECONDS = 120


@pytest.fixture
def sized(array_source):
    """200 images of many sizes, 12 MB of pixels: several pages and several parts."""
    source = array_source(200)
    random = np.random.default_rng(1)
    source.images = [random.integers(0, 256, (20 + 7 * n % 230, 30 + n, 3), np.uint8) for n in range(200)]
    return source


class Indexed:
    """A source as stock FFCV takes it."""

    def __init__(self, source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        return self.source.item(index)


@pytest.mark.parametrize("options", [{}, {"jpeg_quality": 90}, {"max_side": 100}], ids=["raw", "jpeg", "shrunk"])
def test_the_file_is_the_one_that_stock_ffcv_writes_with_one_worker(sized, tmp_path: Path, options) -> None:
    encoding = Encoding(**options)
    field = RGBImageField(
        write_mode="jpg" if encoding.jpeg_quality else "raw", max_resolution=encoding.max_side, jpeg_quality=90
    )
    stock = tmp_path / "stock.beton"
    fields = {"image": field, "label": IntField()}
    writer = DatasetWriter(str(stock), fields, page_size=encoding.page_size(sized), num_workers=1)
    writer.from_indexed_dataset(Indexed(sized), chunksize=50)
    write_beton(sized, tmp_path / "ours.beton", num_workers=2, **options)
    assert (tmp_path / "ours.beton").read_bytes() == stock.read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.lists(st.integers(0, 1000), max_size=30))
def test_no_image_crosses_a_page_or_another_image(position: int, sizes: list[int]) -> None:
    begins, end = place(position, np.array(sizes, np.int64), 1000)
    before = position
    for begin, size in zip(begins.tolist(), sizes, strict=True):
        assert before <= begin < before + 1000
        assert begin == before or begin % 1000 == 0
        assert begin // 1000 == (begin + max(size, 1) - 1) // 1000
        before = begin + size
    assert end == before


IMAGES = 3000


def some():
    source = fashion_mnist("test")
    source.images, source.labels = source.images[:IMAGES], source.labels[:IMAGES]
    return source


def write_some(out: Path, **options) -> dict:
    return write_beton(some(), out, **({"num_workers": 2, "jpeg_quality": 90} | options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a writer makes that nobody interrupts."""
    path = tmp_path_factory.mktemp("whole") / "x.beton"
    write_some(path, num_workers=1)
    return path.read_bytes()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(out: Path, images: int, workers: int) -> None:
    """Write until so many images are done; if that is more than there are, until the last step of all."""
    journal, replace = out.parent / "x.beton.writing" / "journal", os.replace
    if images > IMAGES:
        os.replace = lambda source, target: die() if target == out else replace(source, target)

    def progress(done: int, total: int) -> None:
        if done >= images and journal.read_text().count("\n") > 4:
            die()

    write_some(out, num_workers=workers, progress=progress)


def killed(out: Path, images: int, workers: int) -> None:
    process = fork.Process(target=write_and_die, args=(out, images, workers))
    process.start()
    process.join(LIMIT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()


def test_a_writer_that_is_killed_again_and_again_is_continued(tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "x.beton"
    killed(out, 300, workers=2)
    killed(out, 1500, workers=1)
    summary = write_some(out)
    assert 0 < summary["writing"]["images"] <= IMAGES - 1000
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]
    check(out)


def test_a_writer_that_is_killed_before_its_last_step_is_continued(tmp_path: Path, whole: bytes) -> None:
    killed(tmp_path / "x.beton", IMAGES + 1, workers=2)
    assert write_some(tmp_path / "x.beton")["writing"]["images"] == 0
    assert (tmp_path / "x.beton").read_bytes() == whole


def test_parts_that_were_damaged_since_are_written_again(tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "x.beton"
    killed(out, 1800, workers=1)
    data, journal = (tmp_path / "x.beton.writing" / name for name in ("beton", "journal"))
    content = bytearray(data.read_bytes())
    content[data_start(IMAGES, SMALLEST_PAGE) + 1000] ^= 1
    data.write_bytes(content)
    lines = journal.read_bytes()
    journal.write_bytes(lines[:-30])  # the last line was not finished
    kept = lines.count(b"\n") - 3  # its first line is none, and two parts are lost
    part = -(-IMAGES // PARTS)
    assert write_some(out)["writing"]["images"] == IMAGES - kept * part
    assert out.read_bytes() == whole


def test_other_options_begin_afresh(tmp_path: Path) -> None:
    killed(tmp_path / "x.beton", 500, workers=1)
    summary = write_some(tmp_path / "x.beton", jpeg_quality=None)
    assert (summary["writing"]["images"], summary["encoding"]) == (IMAGES, "raw")
    check(tmp_path / "x.beton")


class ChangedMindError(Exception):
    """Somebody changes their mind."""


def interrupt(done: int, total: int) -> None:
    if done > total / 2:
        raise ChangedMindError


@pytest.mark.parametrize("columns", [Columns("small", "coarse"), Columns("large", "fine")])
def test_other_columns_of_a_table_begin_afresh(tmp_path: Path, columns: Columns) -> None:
    png = {side: cv2.imencode(".png", np.full((side, side, 3), side, np.uint8))[1].tobytes() for side in (8, 16)}
    numbers = np.arange(2000)
    table = {"small": [png[8]] * 2000, "large": [png[16]] * 2000, "fine": numbers % 4, "coarse": numbers // 2 % 4}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    wanted = str(tmp_path / "x.parquet")
    with pytest.raises(ChangedMindError):
        write(wanted, tmp_path / "x.beton", columns=Columns("small", "fine"), num_workers=1, progress=interrupt)
    assert (tmp_path / "x.beton.writing" / "journal").exists()
    summary = write(wanted, tmp_path / "x.beton", columns=columns, num_workers=1)
    assert summary["writing"]["images"] == 2000
    info = open_beton(tmp_path / "x.beton")
    assert info.height == {"small": 8, "large": 16}[columns.image]
    assert np.array_equal(info.labels, table[columns.label])


def test_two_writers_of_one_file_are_told_apart(array_source, tmp_path: Path) -> None:
    with locked(tmp_path / "x.beton.writing" / "lock"):
        with pytest.raises(InputError, match=rf"nobody else at work here .* found process {os.getpid()}"):
            write_beton(array_source(), tmp_path / "x.beton")
    write_beton(array_source(), tmp_path / "x.beton")


def test_a_file_that_cannot_grow_is_one_line(tmp_path: Path) -> None:
    """A limit of a file's size is to a program what a full disk is."""
    out = tmp_path / "x.beton"
    words = ["data", "write", "fashion-mnist", out, "--split", "test", "--jpeg-quality", "90"]
    limit = 2 * SMALLEST_PAGE
    done = subprocess.run(
        [sys.executable, "-m", "kapdist.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert f"{out}.writing/beton: expected room on its disk, found OSError: [Errno 27] File too large" in line
    assert not out.exists()


OUTPUTS = {
    "folder": "expected a file that can be written, or none yet, found a folder",
    "pipe": "expected a file that can be written, or none yet, found neither a file nor a folder",
    "file/out.beton": "expected a place that can be written, found",
    # It would fit, what is put beside it would not.
    "x" * 240: "expected a place that can be written, found File name too long",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written_is_said_first(array_source, tmp_path: Path, name: str) -> None:
    """Not one image is read for it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    source = array_source(3)
    source.item = lambda index: pytest.fail("an image was read")
    with pytest.raises(InputError) as error:
        write_beton(source, tmp_path / name, num_workers=1, progress=lambda *_: pytest.fail("images were written"))
    assert OUTPUTS[name] in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "there"), [("notes.csv", "notes.csv"), ("package", "package.json")])
def test_what_is_no_beton_is_not_written_over(array_source, tmp_path: Path, name: str, there: str) -> None:
    """A mistyped name, or the source's own, must not cost a file."""
    (tmp_path / there).write_text('{"years": "of work"}')
    with pytest.raises(InputError, match=f"{there}: expected no file yet, or a beton.* found a file that is none"):
        write_beton(array_source(3), tmp_path / name, num_workers=1)
    assert (tmp_path / there).read_text() == '{"years": "of work"}'
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_beton_is_written_over_whatever_is_left_of_it(array_source, tmp_path: Path) -> None:
    """Another one, one that was cut off, a manifest alone, one beside which no manifest can be read."""
    path = tmp_path / "out.beton"
    whole = write_beton(array_source(5), path, num_workers=1)["sha256"]
    manifest = path.with_name("out.beton.json")
    os.truncate(path, 100)
    assert write_beton(array_source(5), path, num_workers=1)["sha256"] == whole
    manifest.write_text(manifest.read_text()[:100])
    assert write_beton(array_source(5), path, num_workers=1)["sha256"] == whole
    path.unlink()
    assert write_beton(array_source(5), path, num_workers=1)["sha256"] == whole
    path.write_bytes(b"")
    assert write_beton(array_source(5), path, num_workers=1)["sha256"] == whole


@pytest.mark.parametrize(
    "options",
    [
        {"jpeg_quality": 0},
        {"jpeg_quality": 101},
        {"max_side": 0},
        {"jpeg_quality": 90, "jpeg_share": 1.5},
        {"jpeg_quality": 90, "jpeg_share": float("nan")},
        {"jpeg_quality": 90, "raw_up_to_bytes": -1},
    ],
)
def test_options_out_of_bounds(array_source, tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match=r"(JPEG quality|max side|JPEG share|raw up to bytes): expected"):
        write_beton(array_source(3), tmp_path / "out.beton", **options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_room_lets_it_go_on(tmp_path: Path, whole: bytes) -> None:
    def mount(*options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(tmp_path)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if os.geteuid() or not shutil.which("mount") or not mount("size=2m"):
        pytest.skip("a small disk takes root and the right to mount")
    try:
        out = tmp_path / "x.beton"
        with pytest.raises(InputError, match=r"expected room on its disk, found .*No space left on device"):
            write_some(out)
        assert not out.exists()
        assert mount("remount", "size=64m")
        assert write_some(out)["writing"]["images"] < IMAGES
        assert out.read_bytes() == whole
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_share_of_the_images_is_jpeg_and_the_small_ones_are_raw(sized, tmp_path: Path) -> None:
    options = {"jpeg_quality": 90, "jpeg_share": 0.5, "raw_up_to_bytes": 20_000}
    summary = write_beton(sized, tmp_path / "x.beton", num_workers=2, **options)
    layout = open_beton(tmp_path / "x.beton").layout
    small = 3 * layout.heights.astype(int) * layout.widths <= 20_000
    assert (layout.modes[small] == 1).all()
    # 150 fair draws or so: 5 standard deviations
    assert abs((layout.modes[~small] == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt((~small).sum())
    assert summary["stored"]["raw"] == int((layout.modes == 1).sum())
    assert summary["encoding"] == "jpeg quality 90, 0.5 of the images, raw up to 20000 bytes"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_bounds(array_source, tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match="JPEG share: expected 0 to 1"):
        write_beton(array_source(2), tmp_path / "x.beton", jpeg_quality=90, jpeg_share=share)


def test_two_classes_of_one_name_and_no_images(array_source, tmp_path: Path) -> None:
    source = array_source(4)
    source.class_names = ("a", "a")
    with pytest.raises(InputError, match="arrays: expected classes with different names, found more than one 'a'"):
        write_beton(source, tmp_path / "x.beton")
    with pytest.raises(InputError, match="arrays: expected images, found none"):
        write_beton(array_source(0), tmp_path / "x.beton")


def test_the_manifest_has_sizes_and_rates(sized, tmp_path: Path) -> None:
    summary = write_beton(sized, tmp_path / "x.beton", num_workers=2)
    assert summary["stored"]["image_bytes"] == sum(image.nbytes for image in sized.images)
    writing = summary["writing"]
    assert (writing["images"], writing["num_workers"]) == (200, 2)
    assert 200 / writing["images_per_second"] == pytest.approx(writing["seconds"], abs=1e-3)  # which are rounded
