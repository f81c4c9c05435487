"""Each format's files, small: pixels against Pillow, labels against torchvision's documented layout."""

import shutil
from pathlib import Path

import formats
import numpy as np
import pytest
from formats import WNIDS, pixels

from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write
from kapdist.data.sources import Columns, Source, make_source
from kapdist.data.sources.archives import TarFiles
from kapdist.data.sources.imagenet import SYNSETS


def everything(source: Source) -> list[tuple[str, int]]:
    """Return (image name without its archive, label) of every image."""
    return [(source.image_name(n).rsplit("!", 1)[-1], source.item(n)[1]) for n in range(len(source))]


def test_imagenets_training_tar(tmp_path: Path) -> None:
    files = formats.imagenet_train(tmp_path)
    source = make_source(str(tmp_path))
    assert source.class_names == WNIDS
    # As ImageFolder orders them after unpacking.
    assert everything(source) == [(name.split("/")[1], WNIDS.index(name.split("/")[0])) for name in sorted(files)]
    for index, name in enumerate(sorted(files)):
        assert source.content(index) == files[name]
        assert np.array_equal(source.item(index)[0], pixels(files[name]))
    assert source.image_name(0) == "ILSVRC2012_img_train.tar!n01000001.tar!n01000001_3.JPEG"


def test_imagenets_validation_tar_and_its_devkit(tmp_path: Path) -> None:
    formats.imagenet_val(tmp_path)
    for where in (tmp_path, tmp_path / "ILSVRC2012_img_val.tar"):
        source = make_source(str(where), "val")
        assert [source.class_names[label] for _, label in everything(source)] == list(formats.TRUTH)
        assert [label for _, label in everything(source)] == [543, 278, 0, 212]
        for number in range(4):
            assert source.image_name(number) == f"ILSVRC2012_img_val.tar!ILSVRC2012_val_{number + 1:08}.JPEG"
            assert np.array_equal(source.item(number)[0], pixels(formats.jpeg(number)))


def test_an_unpacked_devkit_will_do(tmp_path: Path) -> None:
    formats.imagenet_val(tmp_path)
    archive = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    shutil.unpack_archive(archive, tmp_path)
    archive.unlink()
    assert [label for _, label in everything(make_source(str(tmp_path), "val"))] == [543, 278, 0, 212]


def test_imagenets_classes_are_the_devkits() -> None:
    """Those that its meta.mat begins and ends with, and where one group of animals follows on another."""
    wnids = SYNSETS.read_text().splitlines()
    assert len(wnids) == len(set(wnids)) == 1000
    assert wnids[:5] == ["n02119789", "n02100735", "n02110185", "n02096294", "n02102040"]
    assert wnids[425:428] == [
        "n02009912",
        "n02009229",
        "n02011460",
    ]  # no longer sorted
    assert wnids[-3:] == ["n04325704", "n07831146", "n03255030"]
    assert {wnids[number - 1]: number for number in formats.IDS.values()} == formats.IDS


def test_imagenet_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = pytest.importorskip("torchvision.datasets.imagenet", exc_type=ImportError)
    scipy_io = pytest.importorskip("scipy.io")
    numbers = {wnid: number for number, wnid in enumerate([*SYNSETS.read_text().split(), *WNIDS], 1)}
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    synsets = np.array([(number, wnid, wnid, "", 0) for wnid, number in numbers.items()], fields)
    scipy_io.savemat(tmp_path / "meta.mat", {"synsets": synsets})
    formats.imagenet_val(tmp_path, (tmp_path / "meta.mat").read_bytes())
    formats.imagenet_train(tmp_path)
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)  # these are not the published ones
    for split in ("train", "val"):
        theirs, ours = imagenet.ImageNet(str(tmp_path), split), make_source(str(tmp_path), split)
        pairs = {Path(path).name: theirs.wnids[label] for path, label in theirs.samples}
        assert pairs == {name.rsplit("/")[-1]: ours.class_names[label] for name, label in everything(ours)}
        assert sorted(ours.class_names) == list(ours.class_names)


def test_a_tar_with_long_names_and_folders(tmp_path: Path) -> None:
    files = {f"./{'long' * 40}/{n}.JPEG": formats.jpeg(n) for n in range(3)}
    (tmp_path / "x.tar").write_bytes(formats.make_tar(files))
    found = TarFiles(tmp_path / "x.tar")
    assert [found.read(name) for name in found.names()] == list(files.values())


@pytest.mark.parametrize("zipped", [False, True])
def test_tiny_imagenet(tmp_path: Path, zipped: bool) -> None:
    place = formats.tiny_imagenet(tmp_path)
    if zipped:
        place = Path(shutil.make_archive(str(place), "zip", tmp_path, place.name))
    train, val = make_source(str(place), "train"), make_source(str(place), "val")
    assert train.class_names == val.class_names == WNIDS
    assert [label for _, label in everything(train)] == [0, 0, 1, 1, 2, 2]
    for index, number in enumerate((0, 3, 1, 4, 2, 5)):
        assert np.array_equal(train.item(index)[0], pixels(formats.jpeg(number)))
    found = {int(val.image_name(n)[-6]): val.item(n) for n in range(len(val))}
    for number, (image, label) in found.items():
        assert np.array_equal(image, pixels(formats.jpeg(100 + number)))
        assert label == (number + 1) % 3
    assert len(found) == 4


def packed(files: dict[str, bytes], root: Path, top: str, how: str) -> Path:
    if how == "archive":
        archive = root / f"{top}.tar.gz"
        archive.write_bytes(formats.make_tar({f"{top}/{name}": content for name, content in files.items()}, "w:gz"))
        return archive
    for name, content in files.items():
        (root / top).mkdir(exist_ok=True)
        (root / top / name).write_bytes(content)
    return root if how == "above" else root / top


@pytest.mark.parametrize("how", ["folder", "above", "archive"])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path: Path, classes: int, binary: bool, how: str) -> None:
    images, labels = formats.cifar_images(10), [7, 3, 0, 9, 9, 1, 2, 3, 4, 5]
    make, word = (formats.cifar10_files, "class") if classes == 10 else (formats.cifar100_files, "fine")
    place = packed(make(images, labels, binary=binary), tmp_path, f"cifar-{classes}-batches", how)
    train, test = make_source(str(place), "train"), make_source(str(place), "test")
    assert train.class_names == tuple(f"{word}{n}" for n in range(classes))
    for source, count in ((train, 10), (test, 2)):
        assert len(source) == count
        for index in range(count):
            image, label = source.item(index)
            assert np.array_equal(image, images[index])
            assert label == labels[index]


def test_the_hubs_parquet_files(tmp_path: Path) -> None:
    contents, labels = [formats.jpeg(n) for n in range(21)], [n % 3 for n in range(21)]
    formats.hub_parquet(tmp_path / "data", contents, labels)
    formats.hub_parquet(tmp_path / "data", contents[:2], [0, 1], split="validation")
    formats.hub_parquet(tmp_path / "data", contents[:2], [-1, -1], split="test")
    source = make_source(str(tmp_path), "train")
    assert source.class_names == tuple(f"name of {wnid}" for wnid in WNIDS)
    assert [source.content(n) for n in range(21)] == contents
    assert [source.item(n)[1] for n in range(21)] == labels
    assert source.image_name(12) == "train-00001-of-00002.parquet!row 2"
    assert len(make_source(str(tmp_path), "val")) == len(make_source(str(tmp_path), "validation")) == 2


def test_any_parquet_file_by_its_columns(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    contents = [formats.jpeg(n) for n in range(5)]
    frame = polars.DataFrame({"jpg": contents, "kind": ["b", "a", "c", "a", "b"], "n": [3, 0, 1, 1, 2]})
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=2)
    source = make_source(str(tmp_path / "x.parquet"), columns=Columns("jpg", "kind"))
    assert source.class_names == ("a", "b", "c")
    assert [source.item(n)[1] for n in range(5)] == [1, 0, 2, 0, 1]
    assert np.array_equal(source.item(3)[0], pixels(contents[3]))
    assert make_source(str(tmp_path), columns=Columns("jpg", "n")).class_names == ("0", "1", "2", "3")


def test_one_row_group_is_in_memory(tmp_path: Path) -> None:
    formats.hub_parquet(tmp_path, [formats.jpeg(n) for n in range(20)], [0] * 20)
    source = make_source(str(tmp_path))
    for index in range(20):
        source.content(index)
        assert len(source.kept[2]) <= 4


def test_file_names_are_those_of_the_images(tmp_path: Path) -> None:
    """For lists of images: in the order of the images, without the archive's own name."""
    places = {name: tmp_path / name for name in ("imagenet", "tiny", "hub")}
    for place in places.values():
        place.mkdir()
    contents = formats.imagenet_train(places["imagenet"])
    formats.imagenet_val(places["imagenet"])
    train = make_source(str(places["imagenet"]), "train")
    assert [train.content(n) for n in range(len(train))] == [contents[name] for name in train.file_names()]
    val = make_source(str(places["imagenet"]), "val")
    assert val.file_names() == [f"ILSVRC2012_val_{n + 1:08}.JPEG" for n in range(len(val))]

    tiny = make_source(str(formats.tiny_imagenet(places["tiny"])), "train")
    assert tiny.file_names()[:2] == [f"train/{WNIDS[0]}/images/{WNIDS[0]}_{n}.JPEG" for n in (0, 3)]
    formats.hub_parquet(places["hub"], [formats.jpeg(n) for n in range(5)], [0] * 5)
    assert make_source(str(places["hub"])).file_names() == ["0.JPEG", "1.JPEG", "0.JPEG", "1.JPEG", "2.JPEG"]
    plain = pytest.importorskip("polars").DataFrame({"image": [formats.jpeg(0)], "label": [0]})
    plain.write_parquet(tmp_path / "plain.parquet")
    assert make_source(str(tmp_path / "plain.parquet")).file_names() is None


def test_the_folder_of_a_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, wnid in enumerate(WNIDS):
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "1.JPEG").write_bytes(formats.jpeg(number))
    for source in (make_source(str(tmp_path), "val"), make_source(str(tmp_path / "val"))):
        assert (source.class_names, len(source)) == (WNIDS, 3)


def test_a_format_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    place = formats.tiny_imagenet(tmp_path)
    assert make_source(str(place / "train"), format="folder").class_names == WNIDS
    assert len(make_source(str(place), "train", format="folder")) == 6


@pytest.mark.parametrize("kind", ["train", "val", "tiny", "parquet"])
def test_written_in_parallel_every_jpeg_is_the_sources(tmp_path: Path, kind: str) -> None:
    """Forked writers share archives, and each image comes from its own place."""
    if kind == "train":
        formats.imagenet_train(tmp_path, images=8)
    elif kind == "val":
        formats.imagenet_val(tmp_path)
    elif kind == "tiny":
        shutil.make_archive(str(formats.tiny_imagenet(tmp_path)), "zip", tmp_path, "tiny-imagenet-200")
    else:
        formats.hub_parquet(tmp_path, [formats.jpeg(n) for n in range(20)], [n % 3 for n in range(20)])
    place = tmp_path / "tiny-imagenet-200.zip" if kind == "tiny" else tmp_path
    split = "val" if kind == "val" else "train"
    summary = write(str(place), tmp_path / "x.beton", split=split, jpeg_quality=90, num_workers=2)
    source, info = make_source(str(place), split), open_beton(tmp_path / "x.beton")
    assert info.class_names == source.class_names
    data = info.path.read_bytes()
    for index, (start, size) in enumerate(zip(info.layout.offsets, info.layout.sizes, strict=True)):
        assert data[start : start + size] == source.content(index)
    assert np.array_equal(info.labels, [source.item(n)[1] for n in range(len(source))])
    assert summary["stored"]["jpeg_as_it_was"] == len(source)
