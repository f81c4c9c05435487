"""The backend without FFCV beside the one with it: the same order, boxes and flips, without it installed too."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import kapdist.data.load.ffcv
from kapdist.data.beton.layout import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    FIELD_TYPE,
    FIELDS,
    HEADER_TYPE,
    METADATA_TYPE,
    open_beton,
)
from kapdist.data.load.order import epoch_order
from kapdist.errors import InputError

CROPS = {"seed": 3, "crop": "random-resized", "resolution": 40, "flip": True, "translate": 2, "cutout": 5}


def both(make_loader, info, **config):
    return (make_loader(info, backend=backend, **config) for backend in ("ffcv", "torch"))


@pytest.mark.parametrize("decode", ["full", "reduced"])
def test_backends_give_the_same_jpeg_crops_to_rounding(photographs, make_loader, read_all, decode: str) -> None:
    """Two builds of libjpeg-turbo: the boxes and flips are equal, or the images would have nothing in common."""
    order = np.array_split(epoch_order(photographs.num_images, 0, 1), 3)
    first, second = (
        read_all(loader, order, epoch=1).astype(int)
        for loader in both(make_loader, photographs, decode=decode, **CROPS)
    )
    assert np.abs(first - second).max() <= 2


def test_backends_give_the_same_raw_pixels(raw_photographs, fashion, make_loader, read_all) -> None:
    for info, config in ((raw_photographs, CROPS), (fashion, {"flip": True, "translate": 3, "cutout": 9})):
        order = np.array_split(epoch_order(info.num_images, 0, 1), 6)
        first, second = (read_all(loader, order, epoch=1) for loader in both(make_loader, info, **config))
        assert np.array_equal(first, second)


def test_backends_keep_the_order_asked_for(fashion, make_loader) -> None:
    order = epoch_order(300, 1, 1)
    asked = [order[:1], order[1:60], order[60:60], order[60:124], order[124:131]]
    for loader in both(make_loader, fashion, training=False):
        batches = list(loader.batches(asked))
        assert all(np.array_equal(ids, batch.indices) for ids, batch in zip(asked, batches, strict=True))
        for batch in batches:
            assert batch.labels.tolist() == fashion.labels[batch.indices].tolist()
            assert batch.images.shape == (len(batch.indices), 3, 32, 32)


def test_a_resumed_epoch_gives_the_rest_of_it(fashion, make_loader) -> None:
    order = np.array_split(epoch_order(300, 5, 3), 10)
    loader = make_loader(fashion, backend="torch", flip=True, translate=3)
    whole, rest = list(loader.batches(order, epoch=3)), list(loader.batches(order[6:], epoch=3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[6:], rest, strict=True))


def test_damage_names_the_image(fashion, copied: Path, make_loader) -> None:
    content = bytearray(copied.read_bytes())
    content[int(fashion.layout.offsets[42]) + 5] ^= 1
    copied.write_bytes(content)
    loader = make_loader(open_beton(copied), backend="torch")
    with pytest.raises(InputError, match="image 42 as it was written, found other bytes"):
        list(loader.batches([np.arange(0, 40), np.arange(40, 50)]))


def test_a_worker_that_hangs_is_given_up(fashion, make_loader, monkeypatch) -> None:
    release, before = threading.Event(), set(threading.enumerate())
    monkeypatch.setattr("kapdist.data.load.simplejpeg.Images.render_stored", lambda *_: release.wait(60))
    loader = make_loader(fashion, backend="torch", timeout_seconds=0.3)
    with pytest.raises(TimeoutError, match=r"batch 0 of this pass over .*did not come within"):
        next(loader.batches([np.arange(4)]))
    (thread,) = [
        each for each in threading.enumerate() if each.name.startswith("kapdist-load") and each not in before
    ]
    release.set()  # it comes back after everybody has gone, and ends
    thread.join(60)
    assert not thread.is_alive()


def test_what_the_backends_refuse(fashion, photographs, make_loader, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"data\.cache: expected page.* found process"):
        make_loader(fashion, backend="torch", order="quasi-random", cache="process")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(InputError, match=r"data\.backend=torch: expected simplejpeg \(pip install simplejpeg\)"):
        make_loader(photographs, backend="torch", crop="random-resized")
    make_loader(fashion, backend="torch")  # pixels need no decoder


def test_the_file_format_is_ffcv_s() -> None:
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    assert kapdist.data.load.ffcv.why_no_ffcv() is None
    assert CURRENT_VERSION == types.CURRENT_VERSION
    assert types.HeaderType == HEADER_TYPE
    assert types.FieldDescType == FIELD_TYPE
    assert ALLOC_TABLE_TYPE == types.ALLOC_TABLE_TYPE
    assert types.get_metadata_type([RGBImageField(), IntField()]) == METADATA_TYPE
    assert [types.TYPE_ID_HANDLER[number] for _, number in FIELDS] == [RGBImageField, IntField]


# In a process of its own, where importing FFCV fails as on a machine without it.
WITHOUT = """
import sys
sys.modules["ffcv"] = None
from pathlib import Path
import numpy as np
from kapdist.config import DataConfig
from kapdist.data.beton.check import check
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write_beton
from kapdist.data.load.loader import Loader
from kapdist.data.sources import class_folder, fashion_mnist
from kapdist.errors import InputError
info = open_beton(Path({path!r}))
def loader(backend):
    config = DataConfig(train=info.path, validation=info.path, backend=backend, flip=True, translate=3)
    return Loader(info, config, training=True, seed=5, max_batch_size=300, device="cpu", num_workers=1)
(batch,) = loader("auto").batches([np.arange(300)], epoch=2)
np.save({out!r}, batch.images.numpy())
source = fashion_mnist("test")
source.images, source.labels = source.images[:300], source.labels[:300]
write_beton(source, Path("raw.beton"), num_workers=1)
write_beton(class_folder(Path({stamps!r})), Path("jpeg.beton"), max_side=200, jpeg_quality=90, num_workers=1)
check(Path("raw.beton"))
check(Path("jpeg.beton"))
content = bytearray(Path("jpeg.beton").read_bytes())
content[int(open_beton(Path("jpeg.beton")).layout.offsets[7]) + 300] ^= 1
Path("jpeg.beton").rename("whole.beton")
Path("jpeg.beton").write_bytes(content)
for refused in (lambda: loader("ffcv"), lambda: check(Path("jpeg.beton"))):
    try:
        refused()
    except InputError as error:
        print(error)
assert not [name for name, module in sys.modules.items() if name.startswith("ffcv") and module]
"""


def test_betons_are_written_checked_and_read_where_ffcv_cannot_be_imported(
    fashion, photographs, stamps: Path, make_loader, tmp_path: Path
) -> None:
    """They are, byte by byte, what is written where FFCV is: stock FFCV's files (test_data_write.py)."""
    code = WITHOUT.format(path=str(fashion.path), stamps=str(stamps), out=str(tmp_path / "images.npy"))
    env = os.environ | {"CI": "", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("data.backend: expected FFCV (or data.backend=torch), found none: ")
    assert lines[1].endswith("expected images as they were written, found 1 damaged: image 7")
    for name, info in (("raw", fashion), ("whole", photographs)):
        assert (tmp_path / f"{name}.beton").read_bytes() == info.path.read_bytes()
    assert "data.backend=auto takes torch" in done.stderr
    (batch,) = make_loader(fashion, seed=5, flip=True, translate=3, max_batch_size=300).batches(
        [np.arange(300)], epoch=2
    )
    assert np.array_equal(np.load(tmp_path / "images.npy"), batch.images.numpy())
