"""Writing, opening and checking betons, good and bad."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kapdist.data.beton.check import check
from kapdist.data.beton.checksum import checksums
from kapdist.data.beton.layout import HEADER_BYTES, HEADER_TYPE, check_labels, open_beton, stored_bytes
from kapdist.data.beton.manifest import manifest_path
from kapdist.data.beton.write import write, write_beton
from kapdist.data.sources import class_folder
from kapdist.data.sources.image import decode_image
from kapdist.errors import InputError
from kapdist.run.files import file_sha256


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def edit_manifest(path: Path, **values: object) -> None:
    manifest = manifest_path(path)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))


def edit_header(path: Path, **values: int) -> None:
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, HEADER_TYPE, 1)
    for key, value in values.items():
        header[key] = value
    path.write_bytes(content)


def test_the_manifest_says_what_is_in_the_file(fashion) -> None:
    summary = check(fashion.path)
    assert summary["num_images"] == 300 == sum(summary["per_class"])
    assert summary["sha256"] == file_sha256(fashion.path)
    assert (summary["smallest"], summary["largest"], summary["encoding"]) == ((32, 32), (32, 32), "raw")
    assert summary["skipped"] == ()
    assert json.loads(json.dumps(summary))["packages"]["simplejpeg"]
    assert summary["size_bytes"] == fashion.path.stat().st_size


def test_raw_images_are_stored_as_they_are(fashion, pixels) -> None:
    data, layout = stored_bytes(fashion.path), fashion.layout
    for index in range(300):
        start = layout.offsets[index]
        assert np.array_equal(data[start : start + layout.sizes[index]].reshape(32, 32, 3), pixels[index])


def test_large_images_are_shrunk_to_the_longer_side(raw_photographs, stamps) -> None:
    source = class_folder(stamps)
    for index in range(len(source)):
        height, width = decode_image(source.content(index)).shape[:2]
        shrink = min(1.0, 200 / max(height, width))
        expected = int(height * shrink), int(width * shrink)
        found = raw_photographs.layout.heights[index], raw_photographs.layout.widths[index]
        assert np.abs(np.subtract(found, expected)).max() <= 1
    assert raw_photographs.height is None
    assert raw_photographs.class_names == ("food", "space")


def test_the_fingerprint_is_of_the_content_not_of_the_file(array_source, tmp_path: Path) -> None:
    source = array_source(400, side=64)
    one = write_beton(source, tmp_path / "1.beton", num_workers=1)
    two = write_beton(source, tmp_path / "2.beton", num_workers=2)
    assert one["fingerprint"] == two["fingerprint"]
    source.labels[0] = 1
    assert write_beton(source, tmp_path / "3.beton", num_workers=1)["fingerprint"] != one["fingerprint"]


def test_checksums_are_xxh64() -> None:
    # Known answers: the test vectors of the xxHash specification's reference implementation.
    for text, expected in [(b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)]:
        data = np.frombuffer(b"xyz" + text, np.uint8)
        assert int(checksums(data, np.array([3]), np.array([len(text)]))[0]) == expected
    long = np.frombuffer(b"Nobody inspects the spammish repetition", np.uint8)
    assert int(checksums(long, np.array([0]), np.array([39]))[0]) == 0xFBCEA83C8A378BF1


def test_any_flipped_bit_changes_the_checksum() -> None:
    content = np.random.default_rng(0).integers(0, 256, 77, np.uint8)
    sums = set()
    for bit in range(77 * 8):
        changed = content.copy()
        changed[bit // 8] ^= 1 << bit % 8
        changed.setflags(write=False)
        sums.add(int(checksums(changed, np.array([0]), np.array([77]))[0]))
    content.setflags(write=False)
    assert len(sums | {int(checksums(content, np.array([0]), np.array([77]))[0])}) == 77 * 8 + 1


def delete(path: Path) -> None:
    path.unlink()


def delete_manifest(path: Path) -> None:
    manifest_path(path).unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_to_a_stub(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def half_written(path: Path) -> None:
    edit_header(path, alloc_table_ptr=0)


def pointer_beyond_the_end(path: Path) -> None:
    edit_header(path, alloc_table_ptr=1 << 62)


def other_version(path: Path) -> None:
    edit_header(path, version=1)


def no_images(path: Path) -> None:
    edit_header(path, num_samples=0)


def other_manifest_version(path: Path) -> None:
    edit_manifest(path, format_version=99)


def manifest_of_another_number(path: Path) -> None:
    edit_manifest(path, num_images=299)


def manifest_of_another_file(path: Path) -> None:
    edit_manifest(path, layout_sha256="0" * 64)


def manifest_that_is_none(path: Path) -> None:
    manifest_path(path).write_text("[1, 2")


def manifest_without_a_key(path: Path) -> None:
    edit_manifest(path, unknown_key=1)


def flipped_label(path: Path) -> None:
    flip_bit(path, HEADER_BYTES + 16)


def flipped_width(path: Path) -> None:
    flip_bit(path, HEADER_BYTES + 1)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (delete, r"copy\.beton: expected a beton .* found no file"),
        (delete_manifest, r"copy\.beton\.json: expected the manifest .* found no file"),
        (cut, r"copy\.beton: expected \d+ bytes .* found \d+ \(truncated or damaged\)"),
        (cut_to_a_stub, "expected a beton, found a file of 100 bytes"),
        (half_written, "expected a finished beton, found a half-written one"),
        (pointer_beyond_the_end, r"found \d+ \(truncated or damaged\)"),
        (other_version, "expected an FFCV file of version 2, found version 1"),
        (no_images, "truncated or damaged"),
        (other_manifest_version, "expected format version 1 .* found version 99"),
        (manifest_of_another_number, "found a damaged one"),
        (manifest_of_another_file, "or another file's manifest"),
        (manifest_that_is_none, "expected a manifest, found"),
        (manifest_without_a_key, "found a damaged one"),
        (flipped_label, "expected the tables that its manifest describes, found others"),
        (flipped_width, "expected images inside of the file, found image 0 outside"),
        (garbage, "expected an FFCV file of version 2"),
    ],
)
def test_bad_betons_are_refused_before_ffcv_opens_them(copied: Path, damage, expected: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=expected) as caught:
        open_beton(copied)
    assert "\n" not in str(caught.value)


def test_a_beton_that_is_not_below_the_current_folder_is_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path of a run's config is another one where a command begins in another folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^val.beton: expected a beton .* found no file from {tmp_path} on$"):
        open_beton(Path("val.beton"))
    with pytest.raises(InputError, match=r"found no file$"):
        open_beton(tmp_path / "val.beton")


def test_the_manifest_of_another_beton_is_refused(copied: Path, array_source, tmp_path: Path) -> None:
    write_beton(array_source(300, side=32), tmp_path / "other.beton", num_workers=1)
    (tmp_path / "other.beton").rename(copied)
    with pytest.raises(InputError, match=r"its manifest|another file's manifest"):
        open_beton(copied)


def test_flipped_bits_are_found_by_image(copied: Path, fashion) -> None:
    for index in (17, 230):
        flip_bit(copied, int(fashion.layout.offsets[index]) + 1000)
    open_beton(copied)  # quick: it reads no pixel
    with pytest.raises(InputError, match=r"expected images as they were written, found 2 damaged: image 17, 230$"):
        check(copied)


def test_a_flipped_bit_between_images_is_found_too(copied: Path, fashion) -> None:
    flip_bit(copied, int((fashion.layout.offsets + fashion.layout.sizes).max()) + 10)
    with pytest.raises(InputError, match=r"expected sha256 .* \(images are whole\)"):
        check(copied)


def test_the_command_says_one_line_and_exits_with_2(copied: Path, fashion, kapdist) -> None:
    flip_bit(copied, int(fashion.layout.offsets[17]))
    done = kapdist("data", "check", copied)
    assert done.code == 2
    *progress, told = done.output.strip().splitlines()
    assert told.endswith("expected images as they were written, found 1 damaged: image 17")
    assert all(line.startswith("copy.beton: ") for line in progress)  # a slow machine says how far it is


def test_labels_beyond_the_model_are_refused(fashion) -> None:
    check_labels(fashion, 10)
    first = int(np.argmax(fashion.labels >= 9))
    with pytest.raises(InputError, match=rf"labels from 0 to 8 .* found 9 \(image {first}; \d+ such images\)"):
        check_labels(fashion, 9)


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A class folder with 8 images, of which 2 cannot be read."""
    for index in range(8):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + index, 10), (index, 0, 0)).save(path)
    (tmp_path / "images/a/4.png").write_bytes(b"")
    path = tmp_path / "images/b/7.png"
    path.write_bytes(path.read_bytes()[:50])
    return tmp_path / "images"


def test_unreadable_images_are_refused_together(spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 unreadable: a/4\.png \(.*\), b/7\.png \(.*\)$"):
        write(str(spoiled), tmp_path / "x.beton", num_workers=2)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "x.beton.writing"}
    # What could be read is kept for the decision: leave them out, or mend them.
    write(str(spoiled), tmp_path / "x.beton", skip_unreadable=True, num_workers=2)
    write(str(spoiled), tmp_path / "y.beton", skip_unreadable=True, num_workers=1)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "y.beton").read_bytes()
    assert not (tmp_path / "x.beton.writing").exists()


def test_mended_images_take_their_places(spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 unreadable"):
        write(str(spoiled), tmp_path / "x.beton", num_workers=2)
    for name in ("a/4.png", "b/7.png"):
        Image.new("RGB", (30, 20), "blue").save(spoiled / name)
    write(str(spoiled), tmp_path / "x.beton", num_workers=2)
    write(str(spoiled), tmp_path / "y.beton", num_workers=1)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "y.beton").read_bytes()
    assert open_beton(tmp_path / "x.beton").layout.widths.tolist() == [10, 12, 30, 16, 11, 13, 15, 30]
    check(tmp_path / "x.beton")


def test_skipped_images_are_recorded(spoiled: Path, tmp_path: Path) -> None:
    summary = write(str(spoiled), tmp_path / "x.beton", skip_unreadable=True, num_workers=2)
    assert [skipped["image"] for skipped in summary["skipped"]] == ["a/4.png", "b/7.png"]
    assert summary["per_class"] == (3, 3)
    assert open_beton(tmp_path / "x.beton").layout.widths.tolist() == [10, 12, 16, 11, 13, 15]
    check(tmp_path / "x.beton")


def test_images_too_large_for_a_page_are_named(array_source, tmp_path: Path) -> None:
    source = array_source(2)
    source.images[1] = np.zeros((4000, 3000, 3), np.uint8)
    with pytest.raises(
        InputError, match=r"1 unreadable: array-1 \(4000 x 3000 pixels are more .* a maximum side\)"
    ):
        write_beton(source, tmp_path / "x.beton", num_workers=1)
    assert write_beton(source, tmp_path / "x.beton", max_side=400, num_workers=1)["largest"] == (400, 300)


@pytest.mark.parametrize("options", [{"jpeg_quality": 0}, {"jpeg_quality": 101}, {"max_side": 0}])
def test_options_out_of_bounds(array_source, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 1 to"):
        write_beton(array_source(2), tmp_path / "x.beton", **options)


def test_progress_reaches_the_end(array_source, tmp_path: Path) -> None:
    seen = []
    write_beton(array_source(30), tmp_path / "x.beton", num_workers=2, progress=lambda *state: seen.append(state))
    assert seen[-1] == (30, 30)
    assert seen == sorted(seen)
