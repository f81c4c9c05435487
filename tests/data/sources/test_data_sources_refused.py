"""Bad input of every format: one line that names the place, what was expected and what was found."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write
from kapdist.data.sources import Columns, class_folder, make_source
from kapdist.data.sources.image import UnreadableImageError
from kapdist.data.sources.pickles import read_arrays
from kapdist.errors import InputError


def imagenet(root: Path) -> Path:
    formats.imagenet_train(root)
    formats.imagenet_val(root)
    return root


def hub(root: Path) -> Path:
    formats.hub_parquet(root, [formats.jpeg(n) for n in range(8)], [n % 3 for n in range(8)])
    return root


def cifar(root: Path) -> Path:
    for name, content in formats.cifar10_files(formats.cifar_images(10), [0] * 10, binary=False).items():
        (root / name).write_bytes(content)
    return root


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(keep * len(content)) // 512 * 512 + 100])

    return change


def inner_tar(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        inner = {
            f"{wnid}.tar": formats.make_tar({f"{wnid}_{n}.JPEG": formats.jpeg(n) for n in range(3)})
            for wnid in formats.WNIDS
        }
        inner["n02000003.tar"] = change(inner["n02000003.tar"])
        (root / "ILSVRC2012_img_train.tar").write_bytes(formats.make_tar(inner))

    return apply


def twice_one_class(root: Path) -> None:
    inner = formats.make_tar({"a.JPEG": formats.jpeg(1)})
    whole = formats.make_tar({"n01000001.tar": inner})
    (root / "ILSVRC2012_img_train.tar").write_bytes(whole[: 512 + len(inner)] + whole)


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = (root / name).read_text()
        assert old in content
        (root / name).write_text(content.replace(old, new, 1))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def other(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(content)


def truth(lines: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        shutil.unpack_archive(root / "ILSVRC2012_devkit_t12.tar.gz", root)
        (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
        (root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text(lines)

    return change


def names_twice(root: Path) -> None:
    files = formats.cifar10_files(formats.cifar_images(10), [0] * 10, binary=False)
    (root / "batches.meta").write_bytes(files["batches.meta"].replace(b"class3", b"class4"))


ANNOTATIONS = "val/val_annotations.txt"
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
BAD = [
    # make, split, damage, what the line says
    (imagenet, "train", inner_tar(lambda tar: tar[:1700]), r"!n02000003\.tar: expected a whole tar, found"),
    (imagenet, "train", inner_tar(lambda tar: tar[:1536]), rf"{TRAIN}!n02000003\.tar: .* cut off .* after 1 files"),
    (imagenet, "train", inner_tar(lambda tar: b"<html>" * 90), rf"{TRAIN}!n02000003\.tar: expected a whole tar"),
    (
        imagenet,
        "train",
        inner_tar(lambda tar: formats.make_tar({})),
        r"n02000003\.tar: .* images, found none",
    ),
    (imagenet, "train", twice_one_class, rf"{TRAIN}: .* different names, found more than one n01000001\.tar"),
    (imagenet, "train", cut(TRAIN, 0.6), rf"{TRAIN}.*: expected a whole tar"),
    (imagenet, "train", other(TRAIN, formats.make_tar({"x": b""})), "expected one tar per class in it, found none"),
    (imagenet, "val", cut(VAL, 0.5), rf"{VAL}: expected a whole tar"),
    (imagenet, "val", truth("1\n2\n"), rf"{VAL}: expected 2 images \(the devkit's ground truth\), found 4"),
    (imagenet, "val", truth("1\n2\n3\n1001\n"), r"_truth\.txt: expected labels from 0 to 999, found -1 \(image 3"),
    (imagenet, "val", truth("1\ntwo\n"), "expected an ILSVRC2012_ID on every line, found .*two"),
    (imagenet, "val", cut("ILSVRC2012_devkit_t12.tar.gz", 0.5), r"expected a whole \.tar\.gz, found"),
    (
        imagenet,
        "val",
        remove("ILSVRC2012_devkit_t12.tar.gz"),
        "labels of the validation images, found neither",
    ),
    (imagenet, "val", remove(VAL), f"expected {VAL}, found no such file"),
    (imagenet, "test", lambda root: None, "split: expected train or val, found test"),
    (formats.tiny_imagenet, "val", remove("val/images/val_2.JPEG"), r"1 missing: val/images/val_2\.JPEG"),
    (
        formats.tiny_imagenet,
        "val",
        text(ANNOTATIONS, "val_0.JPEG\t", "val_1.JPEG\t"),
        r"line 2: .* val_1\.JPEG ag",
    ),
    (
        formats.tiny_imagenet,
        "val",
        text(ANNOTATIONS, "n01000001", "n9"),
        "a class of wnids.txt, found 'n9'",
    ),
    (formats.tiny_imagenet, "val", remove(ANNOTATIONS), "expected a file val/val_annotations.txt"),
    (formats.tiny_imagenet, "val", other("val/images/z.JPEG", b""), r"found none of 1: val/images/z\.JPEG"),
    (formats.tiny_imagenet, "train", text("wnids.txt", "n03000002", "n01000001"), "more than one 'n01000001'|n03"),
    (formats.tiny_imagenet, "train", text("wnids.txt", "n03000002", "n03000003"), "found also n03000002"),
    (formats.tiny_imagenet, "test", lambda root: None, r"found test \(its images have no labels\)"),
    (cifar, "train", cut("data_batch_3", 0.5), "data_batch_3: expected a pickled dict of arrays"),
    (cifar, "train", remove("data_batch_3"), "expected a file data_batch_3"),
    (cifar, "train", names_twice, "expected classes with different names, found more than one 'class4'"),
    (cifar, "val", lambda root: None, "split: expected train or test, found val"),
    (hub, "train", cut("train-00001-of-00002.parquet", 0.9), "expected a whole Parquet file"),
    (hub, "test", lambda root: None, "split: expected train .*found test"),
]


@pytest.mark.parametrize(("make", "split", "damage", "expected"), BAD)
def test_one_line(tmp_path: Path, make, split: str, damage, expected: str) -> None:
    place = make(tmp_path)
    damage(place)
    with pytest.raises(InputError, match=expected) as caught:
        make_source(str(place), split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (Columns("img", "label"), r"expected a column img \(or --image-column .*\), found columns image, label"),
        (Columns("image", "fine_label"), "expected a column fine_label"),
        (Columns("label", "label"), "column label: expected bytes, or a struct with bytes, found int64"),
        (Columns("image", "image"), "labels: expected integers or words"),
    ],
)
def test_a_parquet_without_the_columns(tmp_path: Path, columns: Columns, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_source(str(hub(tmp_path)), columns=columns)


def test_labels_that_are_not_published(tmp_path: Path) -> None:
    formats.hub_parquet(tmp_path, [formats.jpeg(1)] * 4, [-1] * 4, split="test")
    with pytest.raises(InputError, match="expected labels from 0 to 2, found -1"):
        make_source(str(tmp_path), "test")


def test_class_folders_that_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "n1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"split: expected --split train or val .* found none given"):
        make_source(str(tmp_path))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("make", [imagenet, hub])
def test_an_image_that_does_not_decode_is_named_with_its_archive(tmp_path: Path, make, skip: bool) -> None:
    half = formats.jpeg(1)[:400]
    if make is hub:
        formats.hub_parquet(tmp_path, [formats.jpeg(0), b"", half, formats.jpeg(3)], [0, 1, 2, 0])
        names = [r"train-00000-of-00002.parquet!row 1", "train-00001-of-00002.parquet!row 0"]
    else:
        inner = formats.make_tar({"a.JPEG": formats.jpeg(0), "b.JPEG": b"", "c.JPEG": half})
        (tmp_path / TRAIN).write_bytes(formats.make_tar({"n1.tar": inner}))
        names = [f"{TRAIN}!n1.tar!b.JPEG", f"{TRAIN}!n1.tar!c.JPEG"]
    out = tmp_path / "out" / "x.beton"
    if not skip:
        with pytest.raises(InputError, match=r"2 unreadable: .*cannot identify.*, .*(T|t)runcated") as caught:
            write(str(tmp_path), out, split="train", jpeg_quality=90, num_workers=2)
        assert all(name in str(caught.value) for name in names)
        assert not out.exists()
    else:
        summary = write(str(tmp_path), out, split="train", jpeg_quality=90, num_workers=2, skip_unreadable=True)
        assert [skipped["image"] for skipped in summary["skipped"]] == names
        assert open_beton(out).num_images == summary["num_images"] == (2 if make is hub else 1)


class Run:
    """What a pickle can call when it is loaded."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Run(os.system, "touch executed"), r"posix\.system"),
        (Run(eval, "1"), r"builtin.*\.eval"),
        (Run(np.load, "x"), r"numpy\.load"),
        (Run(getattr, "x", "load"), r"builtin.*\.getattr"),
        (Run(np.ndarray, (1 << 40,)), "not callable"),
    ],
)
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_by_name(tmp_path, monkeypatch, value, named) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        content = pickle.dumps({"data": value}, protocol)
        with pytest.raises(InputError, match=rf"x: expected a pickled dict of arrays.*{named}"):
            read_arrays(content, "x")
    assert not (tmp_path / "executed").exists()


def dict_or_line(read: Callable[[], dict]) -> bool:
    try:
        return isinstance(read(), dict)
    except InputError as error:
        return str(error).startswith("x: expected") and "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_dict_of_arrays_or_refused(content: bytes) -> None:
    assert dict_or_line(lambda: read_arrays(b"\x80\x02" + content, "x"))


def test_folders_that_would_move_labels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / ".hidden").mkdir(parents=True)
        for file in (tmp_path / name / "1.png", tmp_path / name / ".hidden" / "2.png"):
            Image.new("RGB", (8, 8)).save(file)
    assert class_folder(tmp_path).files == ["a/1.png", "b/1.png"]
    for place, target, words in (
        (tmp_path / "a" / "up", tmp_path, "links to other folders than those above"),
        (tmp_path / "c", tmp_path / "absent", "a dangling one"),
    ):
        place.symlink_to(target)
        with pytest.raises(InputError, match=words):
            class_folder(tmp_path)
        place.unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    os.mkfifo(tmp_path / "a" / "pipe")  # no name of an image
    with pytest.raises(UnreadableImageError, match="no regular file"):
        class_folder(tmp_path).item(0)


LINKS = [
    # links, as place and target; what the line says of which place, None where the images are the right ones
    (
        {"a/x": "../b", "b/y": "../a"},
        r"a/x/y: expected every folder of images once, found the one that .*/a is too$",
    ),
    ({"a/self": "self"}, r"a/self: expected a link that leads somewhere, as labels follow, found a dangling one$"),
    ({"a/x": "y", "a/y": "x"}, r"a/[xy]: expected a link that leads somewhere"),
    ({"c": "c"}, r"photos/c: expected a link that leads somewhere"),
    ({"a/x": "."}, r"a/x: expected links to other folders than those above"),
    ({"c": "."}, r"photos/c: expected links to other folders than those above"),
    ({"c": "../.."}, r"photos/c: expected links to other folders than those above"),
    ({"a/x": "/"}, r"a/x: expected links to other folders than those above"),
    ({"a/x": "../b"}, r"b: expected every folder of images once, found the one that .*photos/a/x is too$"),
    (
        {"b/x": "../a/deep"},
        r"b/x: expected every folder of images once, found the one that .*/a/deep is too$",
    ),
    ({"c": "b"}, r"c: expected every folder of images once"),
    ({"c": "1", "../1": "2", "../2": "photos/a"}, "c: expected a link that leads somewhere"),
    ({"c": "../1", "../1": "2", "../2": "photos/a"}, r"c: expected every folder of images once"),
    ({"a/x": "../../1", "../1": "outside", "b/y": "../../outside"}, r"b/y: expected every folder of images once"),
    ({"a/x": "../../1", "../outside/up": "../photos"}, r"a/x: expected a link that leads somewhere"),
    ({"a/x": "../../outside", "../outside/up": "../photos"}, r"a/x/up/a: expected every folder of images once"),
    ({"a/x": "../../1", "../1": "2", "../2": "outside"}, None),
    ({"a/x": "../../outside/o.png"}, None),  # a file by a name that is no image's
    ({"a/.x": "../b", "a/.y": "nowhere", ".c": "nowhere"}, None),
]


@pytest.mark.parametrize(("links", "words"), LINKS)
def test_links_among_class_folders(tmp_path: Path, links: dict[str, str], words: str | None) -> None:
    root = tmp_path / "photos"
    for file in ("photos/a/1.png", "photos/a/deep/2.png", "photos/b/1.png", "outside/o.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    for place, target in links.items():
        (root / place).symlink_to(target)
    if words is None:
        outside = ["a/x/o.png"] if links.get("a/x") == "../../1" else []
        assert class_folder(root).files == ["a/1.png", "a/deep/2.png", *outside, "b/1.png"]
    else:
        with pytest.raises(InputError, match=words):
            class_folder(root)


@pytest.mark.parametrize("name", ["photos", "images.zip", "cifar.tar.gz", "train.tar", "one.parquet"])
def test_a_pipe_is_no_source(tmp_path: Path, name: str) -> None:
    """Nobody waits for what it never gives, whatever its name says that it is."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"expected a folder of class folders.* found neither a file nor a folder"):
        make_source(str(tmp_path / name))


def test_a_pipe_among_the_files_of_a_source(tmp_path: Path) -> None:
    batch = cifar(tmp_path) / "data_batch_3"
    batch.unlink()
    os.mkfifo(batch)
    with pytest.raises(InputError, match=r"expected a file data_batch_3, found OSError: no regular file"):
        make_source(str(tmp_path))
    (tmp_path / "hub").mkdir()
    os.mkfifo(tmp_path / "hub" / "train-0.parquet")
    with pytest.raises(InputError, match=r"train-0\.parquet: expected a Parquet file, found no regular file"):
        make_source(str(tmp_path / "hub"))


def write_parquet(path: Path, labels: pa.Array, names: list[str]) -> None:
    features = {"info": {"features": {"label": {"names": names}}}}
    table = pa.table({"image": pa.array([b"x"] * len(labels), pa.binary()), "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)


def test_parquet_files_that_do_not_agree(tmp_path: Path) -> None:
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        write_parquet(tmp_path / f"train-{number}.parquet", pa.array([0, 1]), names)
    with pytest.raises(InputError, match=r"train-1.parquet: expected the class names of the files before it"):
        make_source(str(tmp_path))


def test_a_download_of_the_hub_that_was_cut_short_is_no_data_set(tmp_path: Path) -> None:
    hub(tmp_path)
    formats.hub_parquet(tmp_path, [formats.jpeg(0)] * 2, [0, 1], split="validation")
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"expected 2 files train-\*-of-00002 .*, found 1$"):
        make_source(str(tmp_path))
    assert len(make_source(str(tmp_path), "val")) == 2
    assert len(make_source(str(tmp_path / "train-00000-of-00002.parquet"))) == 4
    (tmp_path / "elsewhere").rename(tmp_path / "train-00000-of-00001-0a1b.parquet")
    with pytest.raises(InputError, match=r"expected files train-\* of one upload, found of 1 and 2$"):
        make_source(str(tmp_path))


def test_a_parquet_label_beyond_int64(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one.parquet", pa.array([0, 2**63], pa.uint64()), ["a", "b"])
    with pytest.raises(InputError, match="integers of at most 63 bits"):
        make_source(str(tmp_path / "one.parquet"))


def test_no_source_and_fewer_than_no_workers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        make_source("")
    with pytest.raises(InputError, match="num workers: expected 0 or more, found -1"):
        write("fashion-mnist", tmp_path / "out.beton", num_workers=-1)
    assert not list(tmp_path.iterdir())
