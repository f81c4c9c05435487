"""The folder for the hub, back to a network: against the run's own, and file by file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from publish.conftest import AVERAGE, CLASSES, SMALL, MakeRun, by_chance, lay_run, logits_of
from torch import nn

from kapdist.errors import InputError
from kapdist.kap import KAPConv2d
from kapdist.kap.noise import layers_with_noise
from kapdist.models import from_pretrained, zoo
from kapdist.publish.card import Card
from kapdist.publish.form import form_of
from kapdist.publish.run import publish
from kapdist.publish.timm_layout import timm_layout

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).parents[1] / "outside.py"
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "noise": ({}, {"noise_std": 0.3}),
    "norm first": ({}, {"noise_std": 0.3, "norm_first": True}),
    "first layer alone": ({}, {"where": ["conv1"], "noise_std": 0.3}),
    "plain": ({}, {"pool_size": 1}),
    "cnn": ({"name": "cnn", "widths": "doubling", "width": 1.0, "expansion": 1}, {"noise_std": 0.3}),
    "an ensemble, one member drawn": ({"members": 2, "random_member": True}, {}),
    "dropout that draws always": ({"dropout": 0.5, "dropout_draws": "always"}, {}),
}


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folder_s_network_is_the_run_s(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    """With its noise off, plain; with its activation noise on, draw by draw (other layers are numbered anew)."""
    run = make_run(*NETWORKS[name])
    own, out = by_chance(run), tmp_path / "hub"
    publish(run.root, out, ["hub"], Card())
    assert json.loads((out / "config.json").read_text())["kapdist"]["kap"]["pool_size"] == 1  # it is folded
    plain, noisy = from_pretrained(out), from_pretrained(out, noise=True)
    assert not layers_with_noise(plain)
    assert not any(isinstance(module, KAPConv2d) or module.training for module in plain.modules())
    expected, fresh = logits_of(own), logits_of(own, "fresh")
    for model, mode in ((plain, "off"), (plain, "fresh"), (noisy, "off")):
        assert_same(logits_of(model, mode), expected)
    if run.load_config().kap.noise_std:
        assert_same(logits_of(noisy, "fresh"), fresh)
    assert [type(layer) for layer in layers_with_noise(noisy)] == [type(layer) for layer in layers_with_noise(own)]
    assert torch.equal(logits_of(noisy, "fresh"), expected) == torch.equal(fresh, expected)


def test_unfolded_it_is_the_run_s_tensors(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(kap={"noise_std": 0.3, "norm_first": True})
    done = publish(run.root, tmp_path / "hub", ["hub"], Card(), unfolded=True)
    own, back = by_chance(run), from_pretrained(tmp_path / "hub", noise=True)
    assert {key: value.tolist() for key, value in back.state_dict().items()} == {
        key: value.tolist() for key, value in own.state_dict().items()
    }
    assert torch.equal(logits_of(back, "fresh"), logits_of(own, "fresh"))
    assert_same(logits_of(from_pretrained(tmp_path / "hub")), logits_of(own))
    assert "the kernels' averages are not folded: it was asked for so" in done.remarks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folder")
    run = lay_run(place / "runs" / "kap", SMALL, AVERAGE | {"noise_std": 0.3})
    publish(run.root, place / "hub", ["hub"], Card())
    return place / "hub"


def test_it_loads_with_torch_and_safetensors_alone(folder: Path) -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "omegaconf", "yaml", "polars", "rich", "typer", "ffcv", "numba"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from kapdist.models import from_pretrained, zoo
print(from_pretrained(sys.argv[1])(torch.zeros(2, 3, 16, 16)).shape)
"""
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == "torch.Size([2, 3])\n", done.stderr


def in_one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    said = str(error.value)
    assert "\n" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "SHA256SUMS"])
def test_a_file_that_is_missing_or_altered_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 3] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(InputError) as altered:
        from_pretrained(damaged)
    # A digit of the sums speaks against the file that it is the sum of.
    in_one_line(altered, "expected sha256", "download it again", "" if name == "SHA256SUMS" else f"damaged/{name}")
    (damaged / name).unlink()
    with pytest.raises(InputError) as missing:
        from_pretrained(damaged)
    in_one_line(missing, f"damaged/{name}: expected")


def test_the_card_may_be_edited(folder: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    (edited / "README.md").write_text("mine\n")
    from_pretrained(edited)
    (edited / "README.md").unlink()
    from_pretrained(edited)


def test_sha256sum_reads_the_sums(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.stdout.split() == ["model.safetensors:", "OK", "config.json:", "OK"]


def test_no_folder_and_a_later_format_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder \(hf download .*owner/name --local-dir FOLDER"):
        from_pretrained("owner/name")
    later = tmp_path / "later"
    shutil.copytree(folder, later)
    text = (later / "config.json").read_text()
    (later / "config.json").write_text(text.replace('"format": 1', '"format": 2'))
    subprocess.run("sha256sum *.json *.safetensors > SHA256SUMS", shell=True, cwd=later, check=True)
    with pytest.raises(InputError, match=r"config.json: expected kapdist.format 1 .*, found 2"):
        from_pretrained(later)


def test_code_of_other_people_is_run_on_the_user_s_word_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped convolutions that are averaged stay as they are; the network's own code is not in the folder."""
    shutil.copy(OUTSIDE, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    model = {"factory": "mine.py:build", "arguments": {"num_classes": 3}, "num_classes": 3}
    run = lay_run(tmp_path / "runs" / "own", model, AVERAGE | {"noise_std": 0.3})
    done = publish(run.root, tmp_path / "hub", ["hub"], Card())
    assert any(remark.startswith("the kernels' averages are not folded: ") for remark in done.remarks)
    with pytest.raises(InputError) as refused:
        from_pretrained(tmp_path / "hub")
    in_one_line(refused, "expected factory='mine.py:build' from you")
    back = from_pretrained(tmp_path / "hub", noise=True, factory="mine.py:build")
    assert torch.equal(logits_of(back, "fresh"), logits_of(by_chance(run), "fresh"))
    assert "whose code is not in this folder" in (tmp_path / "hub" / "README.md").read_text()


BIG = {"name": "resnet18", "num_classes": 3, "stem": "imagenet", "width": 1.0, "widths": "doubling"}
SQUARES = {"widths": "squares"}
AS_TIMM = {
    "its very own": ({}, ("resnet18", None)),
    "other channels": (SQUARES, ("resnet18", {"channels": [64, 144, 256, 529]})),
    "fewer blocks": ({"name": "resnet10"}, ("resnet18", {"layers": [1, 1, 1, 1]})),
    "blurred": ({"blurpool": True}, None),
    "another stem": ({"stem": "cifar"}, None),
    "a narrow stem": ({"width": 0.5}, None),
    "an ensemble": ({"members": 2}, None),
    "no ResNet of timm's": ({"name": "cnn", "stem": "cifar", "width": 1.0}, None),
}


class Described:
    """What `timm_layout` looks at, without weights."""

    class_names = tuple(CLASSES)
    is_plain = True

    def __init__(self, model: dict[str, Any], **data: Any) -> None:
        from kapdist.config import Config

        where = {"train": "t.beton", "validation": "v.beton", "resolution": 224, **data}
        self.config = Config.model_validate({"name": "kap", "data": where, "model": BIG | model})


@pytest.mark.parametrize("name", AS_TIMM)
def test_what_timm_has_is_told_in_timm_s_words(name: str) -> None:
    model, expected = AS_TIMM[name]
    found = timm_layout(Described(model))  # type: ignore[arg-type]
    assert (found and (found["architecture"], found.get("model_args"))) == expected


def test_timm_is_told_how_images_were_prepared() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    cropped = {"crop": "random-resized", "crop_ratio": 0.9, "interpolation": "bicubic"}
    cfg = timm_layout(Described({"mean": mean, "std": std}, **cropped))["pretrained_cfg"]  # type: ignore[arg-type,index]
    assert (cfg["mean"], cfg["std"], cfg["input_size"]) == ([*mean], [*std], [3, 224, 224])
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["pool_size"]) == (0.9, "bicubic", [7, 7])
    whole = timm_layout(Described({"normalise": False}))["pretrained_cfg"]  # type: ignore[arg-type,index]
    assert (whole["mean"], whole["std"], whole["crop_pct"]) == ([0, 0, 0], [1, 1, 1], 1.0)
    area = timm_layout(Described({}, crop="random-resized"))["pretrained_cfg"]  # type: ignore[arg-type,index]
    assert area["interpolation"] == "box"


@pytest.mark.parametrize("kap", [{}, {"norm_first": True, "noise_std": 0.2}], ids=["", "norm first"])
def test_timm_loads_the_folder(kap: dict[str, Any], tmp_path: Path) -> None:
    """The very tensors and, on images that its own transform would have normalised, the run's logits."""
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install 'kapdist[zoo]')")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    model = BIG | {"name": "resnet10", "widths": "squares", "mean": mean, "std": std}
    run = lay_run(tmp_path / "runs" / "kap", model, AVERAGE | kap, resolution=32)
    publish(run.root, tmp_path / "hub", ["hub"], Card())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(theirs)
    assert [[*data[key]] for key in ("mean", "std", "input_size")] == [[*mean], [*std], [3, 32, 32]]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalise = [torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std")]
    with torch.no_grad():
        found, expected = theirs((images - normalise[0]) / normalise[1]), from_pretrained(tmp_path / "hub")(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert theirs.pretrained_cfg["label_names"] == CLASSES


def test_a_network_of_a_zoo_comes_back_and_normalises_as_the_zoo_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(name: str, factory: str) -> zoo.Published:
        stated = zoo.Stated(16, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        return zoo.Published(small_network, "torch.nn", stated, fetch="")

    def small_network(num_classes: int) -> nn.Module:
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, num_classes)
        return nn.Sequential(nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9), nn.ReLU(), *pooled)

    monkeypatch.setitem(zoo.ZOOS, "timm", published)
    run = lay_run(tmp_path / "runs" / "zoo", {"factory": "timm:small_of_a_test", "num_classes": 3}, AVERAGE)
    publish(run.root, tmp_path / "hub", ["hub"], Card())
    back = from_pretrained(tmp_path / "hub")
    assert back.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert_same(logits_of(back), logits_of(by_chance(run)))


def test_the_best_weights_and_their_absence(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(InputError, match=r"best.safetensors: expected weights"):
        publish(run.root, tmp_path / "hub", ["hub"], Card(), weights="best")
    shutil.move(run.weights, run.best_weights)
    with pytest.raises(InputError, match=r"model.safetensors: expected weights"):
        publish(run.root, tmp_path / "hub", ["hub"], Card())
    publish(run.root, tmp_path / "hub", ["hub"], Card(), weights="best")
    assert form_of(run.root, "best").weights == run.best_weights
    assert "best.safetensors, sha256" in (tmp_path / "hub" / "README.md").read_text()


REFUSED = {
    "a wrong licence": ({"card": Card(license="My Own")}, "--license: expected a licence as the hub spells it"),
    "other weights": ({"weights": "last"}, "--weights: expected final or best, found last"),
    "a table as well": ({"formats": ["hub", "csv"]}, "--format: expected hub, onnx or both"),
    "a licence of a file": (
        {"formats": ["onnx"], "card": Card(license="mit")},
        "expected --format hub, found onnx",
    ),
    "a data set of a file": (
        {"formats": ["onnx"], "card": Card(dataset="you/photos")},
        "--dataset: expected --format hub, found onnx",
    ),
    "a folder for a file": ({"formats": ["onnx"]}, "--out: expected a file NAME.onnx"),
    "nothing to write to": ({"out": "file/hub"}, "Not a directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_words_are_refused_before_the_run_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    words, said = REFUSED[name]
    words = {"out": "hub", "formats": ["hub"], "card": Card()} | words
    with pytest.raises(InputError) as refused:
        publish(Path("no run"), **(words | {"out": Path(words["out"])}))
    in_one_line(refused, said)
    assert sorted(Path().iterdir()) == [Path("file")]
