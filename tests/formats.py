"""Small data sets in exactly the formats that they are downloaded in."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

WNIDS = ("n01000001", "n02000003", "n03000002")  # sorted: torchvision's labels
# ILSVRC2012_ID of some classes, as the devkit's meta.mat has them: kit fox, English setter, tench, dumbbell.
IDS = {"n02119789": 1, "n02100735": 2, "n01440764": 449, "n03255030": 1000}
TRUTH = ("n03255030", "n02119789", "n01440764", "n02100735")


def photo(number: int, side: int = 20) -> np.ndarray:
    """Return an image that no other number has, (side, side + number % 3, 3) uint8."""
    y, x = np.mgrid[:side, : side + number % 3]
    return np.stack([x * 9 % 256, y * 9 % 256, np.full_like(x, number * 37 % 256)], axis=2).astype(np.uint8)


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(number)).save(out, "JPEG", quality=95)
    return out.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def make_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def imagenet_train(root: Path, images: int = 3) -> dict[str, bytes]:
    """Write ILSVRC2012_img_train.tar, a tar of one tar per class in no order; return {wnid/name: bytes}."""
    files = {wnid: {} for wnid in WNIDS[::-1]}
    for number in range(images * len(WNIDS)):
        wnid = WNIDS[number % len(WNIDS)]
        files[wnid][f"{wnid}_{images * 3 - number}.JPEG"] = jpeg(number)
    tars = {f"{wnid}.tar": make_tar(found) for wnid, found in files.items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(make_tar(tars))
    return {f"{wnid}/{name}": content for wnid, found in files.items() for name, content in found.items()}


def imagenet_val(root: Path, meta: bytes = b"not read") -> None:
    """Write ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz; image k is photo(k) of class TRUTH[k]."""
    images = {f"ILSVRC2012_val_{number + 1:08}.JPEG": jpeg(number) for number in range(len(TRUTH))}
    shuffled = dict(sorted(images.items(), reverse=True))
    (root / "ILSVRC2012_img_val.tar").write_bytes(make_tar(shuffled))
    top = "ILSVRC2012_devkit_t12"
    devkit = {
        f"{top}/readme.txt": b"Development kit",
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{IDS[w]}\n" for w in TRUTH).encode(),
        f"{top}/data/meta.mat": meta,
    }
    (root / f"{top}.tar.gz").write_bytes(make_tar(devkit, "w:gz"))


def tiny_imagenet(root: Path) -> Path:
    """Write tiny-imagenet-200/; image k of the validation split is photo(100 + k)."""
    top = root / "tiny-imagenet-200"
    files = {"wnids.txt": "\n".join(WNIDS[::-1]).encode(), "words.txt": b"n01000001\ttench\n"}
    for number in range(6):
        wnid = WNIDS[number % 3]
        files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(number)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01000001_0.JPEG\t0\t0\t5\t5\n"
    lines = []
    for number in range(4):
        files[f"val/images/val_{number}.JPEG"] = jpeg(100 + number)
        lines.append(f"val_{number}.JPEG\t{WNIDS[(number + 1) % 3]}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg(200)
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    return top


def cifar_images(count: int) -> np.ndarray:
    """Return (count, 32, 32, 3) uint8."""
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def channel_rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is what the published files hold."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes) -> None:
        short = len(value) < 256
        self.write(b"U" + bytes([len(value)]) + value if short else b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def pickled(value: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def cifar10_files(images: np.ndarray, labels: list[int], *, binary: bool) -> dict[str, bytes]:
    """Return the files of a distribution: five training batches of equal size, and the first images as the test."""
    rows, names = channel_rows(images), [f"class{n}" for n in range(10)]
    parts = {f"data_batch_{n + 1}": part for n, part in enumerate(np.array_split(np.arange(len(rows)), 5))}
    parts["test_batch"] = np.arange(2)
    if binary:
        records = np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1)
        files = {f"{name}.bin": records[part].tobytes() for name, part in parts.items()}
        return files | {"batches.meta.txt": ("\n".join(names) + "\n\n").encode()}
    files = {
        # As the published ones: written by Python 2, with bytes for keys.
        name: pickled({b"batch_label": b"of five", b"labels": [labels[n] for n in part], b"data": rows[part]})
        for name, part in parts.items()
    }
    return files | {"batches.meta": pickled({b"label_names": [name.encode() for name in names]})}


def cifar100_files(images: np.ndarray, labels: list[int], *, binary: bool) -> dict[str, bytes]:
    rows, names = channel_rows(images), [f"fine{n}" for n in range(100)]
    coarse = [label // 5 for label in labels]
    parts = {"train": np.arange(len(rows)), "test": np.arange(2)}
    if binary:
        both = np.array([coarse, labels], np.uint8).T
        files = {f"{name}.bin": np.concatenate([both, rows], 1)[part].tobytes() for name, part in parts.items()}
        return files | {"fine_label_names.txt": "\n".join(names).encode(), "coarse_label_names.txt": b"a\nb"}
    files = {
        name: pickled(
            {
                b"coarse_labels": [coarse[n] for n in part],
                b"fine_labels": [labels[n] for n in part],
                b"data": rows[part],
            }
        )
        for name, part in parts.items()
    }
    meta = {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"a", b"b"]}
    return files | {"meta": pickled(meta)}


def hub_parquet(
    folder: Path, contents: list[bytes], labels: list[int], split: str = "train", group: int = 4
) -> None:
    """Write Parquet files as the hub has them (ILSVRC/imagenet-1k), two files, row groups of `group` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"name of {wnid}" for wnid in WNIDS]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    folder.mkdir(parents=True, exist_ok=True)
    half = len(labels) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        images = [{"bytes": content, "path": f"{n}.JPEG"} for n, content in enumerate(contents[part])]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels[part], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-{number:05}-of-00002.parquet", row_group_size=group)


def small_jpeg(number: int, side: int) -> bytes:
    """Return one of a few flat images, quick to make; JPEG keeps flat colours to a level or two."""
    out = io.BytesIO()
    colour = (number * 67 % 256, number * 131 % 256, number * 29 % 256)
    Image.new("RGB", (side, side), colour).save(out, "JPEG", quality=85)
    return out.getvalue()


def corruption_folders(
    root: Path, wnids: tuple[str, ...], side: int, kinds: tuple[str, ...], each: int = 2, severities: int = 5
) -> Path:
    """Write corruption/severity/WordNet id/*.JPEG, as ImageNet-C and its like are unpacked."""
    for place, kind in enumerate(kinds):
        for severity in range(1, severities + 1):
            for number in range(each * len(wnids)):
                wnid = wnids[number % len(wnids)]
                file = root / kind / str(severity) / wnid / f"ILSVRC2012_val_{number:08}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(small_jpeg(100 * place + 17 * severity + number, side))
    return root


def cifar_c(root: Path, classes: int, kinds: tuple[str, ...], images: int = 12) -> Path:
    """Write corruption.npy, five severities one after the other, and labels.npy, which repeats the labels."""
    root.mkdir(parents=True)
    for number, kind in enumerate(kinds):
        np.save(root / f"{kind}.npy", cifar_images(5 * images + number)[: 5 * images])
    labels = np.arange(images) * 7 % classes
    labels[-1] = classes - 1
    np.save(root / "labels.npy", np.tile(labels, 5))
    return root


def photographs(root: Path, folders: tuple[str, ...]) -> Path:
    """Write class folders with one photograph each, of three sizes, as ImageNet-A, -R and -V2 are unpacked."""
    contents = [small_jpeg(number, 20 + 4 * number) for number in range(3)]
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        (root / folder / f"0.0{number}_a name _ another_0.9.jpg").write_bytes(contents[number % 3])
    (root / "README.txt").write_text("class names")
    return root
