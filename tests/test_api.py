"""Programs and the command line get the same numbers, and a module that is lent comes back as it was."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from in_memory import pixels
from torch import Tensor, nn

import kapdist
from kapdist import cli
from kapdist.attack.images import describe_images
from kapdist.attack.shard import run_shard
from kapdist.config import Config
from kapdist.config.file import dump_config
from kapdist.config.images import ImagesConfig
from kapdist.data.load.tensors import Tensors, write_tensors
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.live import given, module_of
from kapdist.models.weights import save_weights
from kapdist.records.attack_plan import read_plan
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.record import read_record
from kapdist.run.paths import RunDir

NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
"""
QUICK = {"eps": 0.03, "attacks": ["random-noise", "apgd-ce"], "random_draws": 3, "screen": 1, "chunk_size": 6}
FAST = {"threads": 1, "device": "cpu"}
VERDICTS = ["image", "label", "clean_prediction", "broken_by", "broken_eps"]
SANITY = {"iterations": 3, "restarts": 2, "queries": 10, "draws": 2, "num_images": 8}
CORRUPTIONS = {"kinds": ["fog"], "severities": [1, 3], "noise_stds": [0.1]}


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A module, and the factory and the weights that make it again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = scope["build"]()
    torch.save(module.state_dict(), "net.pth")
    return module.eval()


def pictures(net: nn.Module, number: int = 16) -> tuple[Tensor, Tensor]:
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = net(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % 4
    return images, labels


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["kapdist", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0


def as_words(keys: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items()]


def test_the_eps_of_an_attack_follows_its_norm(net: nn.Module) -> None:
    found = kapdist.attack(net, *pictures(net, 4), norm="L2", attacks=["random-noise"], random_draws=1, **FAST)
    assert (found.plan.norm, found.plan.eps) == ("L2", 0.5)


def test_importing_it_imports_nothing() -> None:
    heavy = ("torch", "numpy", "pydantic", "polars", "kapdist.api", "kapdist.attack")
    program = f"import sys, kapdist; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", program], timeout=240).returncode == 0


def test_rooms_are_packages_and_functions() -> None:
    assert callable(kapdist.attack)
    assert callable(kapdist.evaluate)
    assert kapdist.attack.__path__
    assert kapdist.attack is sys.modules["kapdist.attack"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = kapdist.nothing


def test_a_module_s_verdicts_are_those_of_the_command(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(net)
    found = kapdist.attack(net, images, labels, **QUICK, **FAST, keep_adversarial=True)
    file = write_tensors(Path("given"), images, labels)
    words = [f"data={file}", "model.factory=net.py:build", "model.weights=net.pth", "num_classes=4"]
    command(
        monkeypatch,
        "attack",
        "run",
        "given",
        *words,
        *as_words(QUICK | FAST | {"attacks": "[random-noise,apgd-ce]"}),
    )
    records = pl.read_parquet(RunDir(Path("given")).attack("attack").records)
    assert found.images.select(VERDICTS).equals(records.select(VERDICTS))
    assert 0 < found.summary.num_robust < found.summary.num_clean_correct
    assert found.summary.num_clean_correct == int((net(images).argmax(1) == labels).sum())
    assert found.adversarial is not None
    broken = torch.from_numpy(found.images["broken_by"].is_not_null().to_numpy())
    assert (net(found.adversarial).argmax(1) != labels)[broken].all()
    assert (found.adversarial - images).abs().max() <= 0.03 * (1 + 1e-5)


def test_a_module_comes_back_as_it_was(net: nn.Module) -> None:
    net[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images, labels = pictures(net)
    kapdist.attack(net, images, labels, **QUICK | {"attacks": ["random-noise"]}, **FAST)
    kapdist.evaluate(net, images, labels, **FAST)
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [name for name, _ in net.named_buffers()] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert not net._forward_pre_hooks
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_same_call_goes_on_in_its_directory_and_another_module_is_refused(net: nn.Module) -> None:
    images, labels = pictures(net)
    here = {"directory": "kept", **QUICK, **FAST, "attacks": ["random-noise"]}
    first = kapdist.attack(net, images, labels, **here)
    chunk = RunDir(Path("kept")).attack("attack").chunk(0)
    written = chunk.stat().st_mtime_ns
    RunDir(Path("kept")).attack("attack").chunk(1).unlink()
    again = kapdist.attack(net, images, labels, **here)
    assert again.images.select(VERDICTS).equals(first.images.select(VERDICTS))
    assert chunk.stat().st_mtime_ns == written
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(InputError, match=r"model\.weights_sha256"):
        kapdist.attack(net, images, labels, **here)
    chunk.unlink()
    with pytest.raises(InputError, match=r"model <Sequential>: expected the Python program that holds the module"):
        run_shard(Path("kept/attacks/attack"), 0, 1)


def test_evaluation_counts_what_the_command_counts(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(net)
    found = kapdist.evaluate(net, images, labels, **FAST)
    logits = net(images)
    assert found.num_top1 == int((logits.argmax(1) == labels).sum())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    file = write_tensors(Path("given"), images, labels)
    words = [f"data={file}", "model.factory=net.py:build", "model.weights=net.pth", "num_classes=4"]
    command(monkeypatch, "evaluate", "given", *words, *as_words(FAST))
    written = read_record(EvaluationResult, RunDir(Path("given")).evaluation("evaluation"))
    assert written.describe()["bins"] == found.describe()["bins"]
    assert (written.loss_sum, written.classes) == (found.loss_sum, found.classes)
    command(monkeypatch, "evaluate", "given", *words, *as_words(FAST))


def test_sanity_and_corruptions_are_those_of_a_factory(net: nn.Module) -> None:
    images, labels = pictures(net)
    factory: dict[str, Any] = {"model": {"weights": "net.pth"}, "num_classes": 4}
    module, named = (
        kapdist.sanity(model, images, labels, eps=0.03, sanity=SANITY, **FAST, **keys)
        for model, keys in ((net, {}), ("net.py:build", factory))
    )
    assert [check.value for check in module.checks] == [check.value for check in named.checks]
    module, named = (
        kapdist.corruptions(model, images, labels, eps=0.03, corruptions=CORRUPTIONS, **FAST, **keys)
        for model, keys in ((net, {}), ("net.py:build", factory))
    )
    columns = ["kind", "severity", "image", "label", "prediction"]
    assert module.images.select(columns).equals(named.images.select(columns))
    clean = module.images.filter(pl.col("kind") == "clean")
    assert np.array_equal(clean["prediction"].to_numpy(), net(images).argmax(1).numpy())


def test_certificates_are_those_of_the_command(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(net, 5)
    keys = {"sigma": 0.1, "draws": 60, "selection_draws": 10, "alpha": 0.05, **FAST}
    found = kapdist.certify(net, images, labels, **keys)
    words = [f"data={write_tensors(Path('theirs'), images, labels)}", "model.factory=net.py:build", "num_classes=4"]
    command(monkeypatch, "certify", "theirs", *words, "model.weights=net.pth", *as_words(keys))
    theirs = pl.read_parquet(RunDir(Path("theirs")).certified("certificate").records)
    same = ["image", "label", "sigma", "predicted", "radius", "p_a"]
    assert found.images.select(same).equals(theirs.select(same))
    assert (found.images.height, found.summary.num_images) == (5, 5)


def test_a_beton_and_its_pixels_as_tensors_are_the_same_images(
    net: nn.Module, small_betons: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = nn.Sequential(nn.AvgPool2d(4, ceil_mode=True), nn.Flatten(), nn.Linear(3 * 64, 10)).eval()
    beton = small_betons[1]
    images = pixels(beton)
    keys = QUICK | FAST | {"attacks": ["random-noise"], "num_images": 0, "chunk_size": 70}
    of_beton = kapdist.attack(wide, beton, **keys, num_classes=10)
    labels = torch.tensor(of_beton.images["label"].to_list())
    of_tensors = kapdist.attack(wide, images, labels, **keys)
    assert of_beton.images.select(VERDICTS).equals(of_tensors.images.select(VERDICTS))


def test_a_run_is_asked_without_a_file_and_keeps_what_is_found(
    net: nn.Module, small_betons: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = small_betons
    model = {"name": "resnet10", "num_classes": 10, "width": 0.125}
    values = {"name": "run", "data": {"train": train, "validation": validation}, "model": model}
    config = Config.model_validate(values)
    run = RunDir(Path("runs/run"))
    run.root.mkdir(parents=True)
    run.config.write_text(dump_config(config))
    save_weights(build_model(config.model, config.kap), run.weights)
    keys: dict[str, Any] = {"attacks": ["random-noise"], "random_draws": 2, "num_images": 4} | FAST
    found = kapdist.attack(run.root, **keys)
    words = as_words(keys | {"attacks": "[random-noise]", "name": "words"})
    command(monkeypatch, "attack", "plan", run.root, *words)
    assert read_plan(run.attack("words")).fingerprint == found.plan.fingerprint
    assert run.attack("attack").summary.exists()
    with pytest.raises(InputError, match="directory: expected none beside a run"):
        kapdist.attack(str(run.root), directory="elsewhere", **keys)


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], object], str]] = {
    "bytes": (
        lambda net, x, y: kapdist.attack(net, (255 * x).byte(), y),
        "found uint8 (images / 255, if they are byte",
    ),
    "range": (lambda net, x, y: kapdist.attack(net, 2 * x, y), "expected images in [0, 1], found values from"),
    "nan": (
        lambda net, x, y: kapdist.attack(net, x / 0 * 0, y),
        "expected images in [0, 1], found values from nan",
    ),
    "shape": (
        lambda net, x, y: kapdist.attack(net, x[0], y),
        "expected images (number, 3, side, side), one at least",
    ),
    "labels": (lambda net, x, y: kapdist.attack(net, x, y[:3]), "labels as whole numbers (16,), found int64 (3,)"),
    "no labels": (lambda net, x, y: kapdist.attack(net, x), "labels: expected a tensor with the images' labels"),
    "too many": (lambda net, x, y: kapdist.attack(net, "a.beton", y), "labels: expected none beside a beton"),
    "training": (
        lambda net, x, y: kapdist.sanity(net.train(), x, y),
        "model <Sequential>: expected a module in evaluation mode (model.eval()), found the module in training",
    ),
    "part": (lambda net, x, y: kapdist.evaluate((net[1].train(), net)[1], x, y), "found 1 in training"),
    "key": (
        lambda net, x, y: kapdist.attack(net, x, y, epz=1),
        "arguments: epz: expected a known key (nearest: eps)",
    ),
    "value": (
        lambda net, x, y: kapdist.attack(net, x, y, eps=-1),
        "arguments: eps: expected a finite number greater",
    ),
    "shards": (lambda net, x, y: kapdist.attack(net, x, y, num_shards=2), "num_shards: expected 1 with a module"),
    "typo": (
        lambda net, x, y: kapdist.attack("runs/typo", x, y),
        "runs/typo: expected a run directory, a module or",
    ),
    "classes": (
        lambda net, x, y: kapdist.attack("net.py:build", x, y),
        "num_classes: expected the number of net.py",
    ),
    "label": (lambda net, x, y: kapdist.evaluate(net, x, y + 3), "labels from 0 to 3 (num_classes = 4), found 6"),
    "an array": (
        lambda net, x, y: kapdist.attack(net, x.numpy(), y),
        "images: expected a tensor, or the path of a be",
    ),
    "no model": (
        lambda net, x, y: kapdist.attack(None, x, y),
        "model: expected a module, a run directory or a fact",
    ),
    "model twice": (
        lambda net, x, y: kapdist.attack(net, x, y, model="net.pth"),
        "model: expected a mapping beside",
    ),
    "directory": (
        lambda net, x, y: kapdist.attack(net, x, y, directory="net.py"),
        "directory: expected a folder, or",
    ),
    "no images": (
        lambda net, x, y: kapdist.evaluate(net),
        "data: expected a beton with the images for <Sequential>",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(net: nn.Module, case: str) -> None:
    call, line = REFUSED[case]
    with pytest.raises(InputError) as caught:
        call(net, *pictures(net))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_modules_of_a_name_at_once_are_refused(net: nn.Module) -> None:
    """As from two threads: one call would build the other's module."""
    images, labels = pictures(net)
    told: list[str] = []

    class Asking(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not told:
                with pytest.raises(InputError) as caught:
                    kapdist.evaluate(Asking(*copy.deepcopy(net)).eval(), images, labels, **FAST)
                told.append(str(caught.value))
            return super().forward(x)

    model = Asking(*net).eval()
    with given(model) as name:
        model(images)
        assert module_of(name) is model
    assert told == ["model <Asking>: expected one such module asked about at a time in a process, found two"]
    assert kapdist.evaluate(model, images, labels, **FAST).num_top1 == int((net(images).argmax(1) == labels).sum())


def test_a_file_of_tensors_that_is_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no such file"):
        Tensors(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    save_file({"images": torch.rand(2, 3, 8, 8)}, tmp_path / "half.safetensors")
    save_file({"images": torch.rand(2, 1, 8, 8), "labels": torch.zeros(2).long()}, tmp_path / "grey.safetensors")
    for name in ("torn", "half", "grey"):
        with pytest.raises(InputError, match="images, float32"):
            Tensors(tmp_path / f"{name}.safetensors")
    file = write_tensors(tmp_path, torch.rand(3, 3, 8, 8), torch.arange(3))
    found = describe_images(ImagesConfig(beton=file), None)
    assert (found.num_images, found.num_classes, found.data.resolution) == (3, 3, 8)


def test_every_image_and_label_of_a_file_of_tensors_is_looked_at(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4, dtype=torch.int32)
    save_file({"images": images, "labels": labels}, tmp_path / "good.safetensors")
    ((_, found),) = Tensors(tmp_path / "good.safetensors").batches([np.arange(4)])
    assert found.dtype == torch.int64  # as cross-entropies want them
    for name, value in (("bytes", 255.0), ("nan", torch.nan)):
        images[2, 0, 0, 0] = value
        save_file({"images": images, "labels": labels}, tmp_path / f"{name}.safetensors")
        first, second = [np.arange(2)], [np.arange(2, 4)]
        assert len(list(Tensors(tmp_path / f"{name}.safetensors").batches(first))) == 1
        with pytest.raises(InputError, match=rf"{name}\.safetensors: expected images in \[0, 1\], found values"):
            list(Tensors(tmp_path / f"{name}.safetensors").batches(second))
    labels[3] = -100
    save_file({"images": images, "labels": labels}, tmp_path / "labels.safetensors")
    with pytest.raises(InputError, match="expected labels from 0 on, found -100"):
        Tensors(tmp_path / "labels.safetensors")
