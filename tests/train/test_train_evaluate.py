"""Evaluation against a float64 reference, counted one image at a time; the same file on any number of ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from in_memory import pixels
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from kapdist import kap
from kapdist.config import Config
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import dump_config, load_config
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.manifest import content_fingerprint, manifest_path
from kapdist.data.load import backend, resident
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.records.sealed import read_json
from kapdist.rng import derive_seed
from kapdist.run.files import file_sha256
from kapdist.run.paths import RunDir
from kapdist.train.evaluate import NUM_BINS, Tally, bin_of
from kapdist.train.evaluate_run import evaluate_run
from kapdist.train.evaluated import check_size

BATCH = 16  # 70 images are four batches of it and one of six
FAST = [f"batch_size={BATCH}", "threads=1", "workers=1", "device=cpu"]


def tallied(logits: Tensor, labels: Tensor, *cuts: int):
    tally = Tally(logits.shape[1], torch.device("cpu"))
    for part, own in zip(logits.tensor_split(cuts), labels.tensor_split(cuts), strict=True):
        tally.add(part, own)
    return tally.over(Ranks())


def by_hand(logits: Tensor, labels: Tensor) -> dict:
    """One image at a time, in float64."""
    num_classes = logits.shape[1]
    found = {"top1": 0, "top5": 0, "loss": 0.0, "classes": [0] * num_classes}
    bins = [[0, 0, 0.0] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        best = sorted(range(num_classes), key=lambda c: (-row[c], c))
        total = sum(math.exp(value - max(row)) for value in row)
        confidence = 1 / total
        right = best[0] == label
        found["top1"] += right
        found["top5"] += label in best[:5]
        found["classes"][label] += right
        found["loss"] -= row[label] - max(row) - math.log(total)
        here = bins[next(m for m in range(15) if confidence <= (m + 1) / 15 + 1e-15)]
        here[0], here[1], here[2] = here[0] + 1, here[1] + right, here[2] + confidence
    found["ece"] = sum(n / len(labels) * abs(r / n - c / n) for n, r, c in bins if n)
    return found


@pytest.mark.parametrize("num_classes", [3, 5, 12])
def test_counts_are_those_of_one_image_at_a_time(num_classes: int) -> None:
    """With fewer than five classes every image is among the best five."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, num_classes, generator=generator)
    logits[:20, : num_classes - 1] = logits[:20, :1]  # ties
    labels = torch.randint(0, num_classes, (200,), generator=generator)
    found, expected = tallied(logits, labels, 7, 100), by_hand(logits, labels)
    assert (found.num_images, found.num_top1, found.num_top5) == (200, expected["top1"], expected["top5"])
    assert list(found.class_top1) == expected["classes"]
    assert list(found.class_images) == torch.bincount(labels, minlength=num_classes).tolist()
    assert found.loss_sum == pytest.approx(expected["loss"], rel=1e-12)
    assert found.calibration_error == pytest.approx(expected["ece"], rel=1e-12)
    assert num_classes != 3 or found.num_top5 == 200


def test_bins_are_open_below_and_closed_above() -> None:
    edges = torch.arange(1, NUM_BINS + 1, dtype=torch.float64) / NUM_BINS
    assert bin_of(edges).tolist() == list(range(NUM_BINS))
    assert bin_of(edges[:-1] + 1e-9).tolist() == list(range(1, NUM_BINS))


def test_calibration_of_known_answers() -> None:
    """Certain and always right is 0; certain and right half of the time is 1/2."""
    sure = torch.tensor([[40.0, 0.0]]).repeat(10, 1)
    assert tallied(sure, torch.zeros(10, dtype=torch.int64)).calibration_error == pytest.approx(0, abs=1e-12)
    assert tallied(sure, torch.arange(10) % 2).calibration_error == pytest.approx(0.5)


def test_logits_that_are_not_finite_are_wrong() -> None:
    logits = torch.zeros(4, 3)
    logits[0, 1], logits[1, 0], logits[2] = torch.nan, torch.inf, torch.nan
    found = tallied(logits, torch.zeros(4, dtype=torch.int64))
    assert (found.num_top1, found.num_top5) == (1, 1)


@pytest.fixture
def run(tiny_config: Path) -> RunDir:
    """A finished run, but for its training: weights that tell some images apart, and norms that fit them."""
    config = load_config(Config, tiny_config, ["model.stem=cifar", f"runs_dir={tiny_config.parent / 'runs'}"])
    run = RunDir(config.runs_dir / config.name)
    run.claim(config)
    torch.manual_seed(0)
    model = build_model(config.model, config.kap).train()
    with torch.no_grad(), kap.noise(model, "off"):
        model.fc.weight.mul_(4)
        for _ in range(30):
            model(pixels(config.data.validation))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, run.weights)
    return run


def reference(run: RunDir, change: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    """Float64 logits of the run's model, its noise off, and labels."""
    config = run.load_config()
    model = build_model(config.model, config.kap)
    model.load_state_dict(load_file(run.weights))
    model = model.double().eval()
    with torch.no_grad(), kap.noise(model, "off"):
        logits = model(change(pixels(config.data.validation).double()))
    return logits, torch.from_numpy(open_beton(config.data.validation).labels)


def evaluated(run: RunDir, *words: str) -> dict:
    result = evaluate_run(run.root, load_config(EvaluationConfig, None, [*FAST, *words]))
    assert result is not None
    return result.describe()


def test_a_run_is_what_float64_makes_of_it(run: RunDir) -> None:
    result = evaluated(run)
    expected = by_hand(*reference(run))
    assert result["num_images"] == 70
    assert (result["num_top1"], result["num_top5"]) == (expected["top1"], expected["top5"])
    assert 0 < result["num_top1"] < 70
    assert [one["num_top1"] for one in result["classes"]] == expected["classes"]
    assert result["loss"] == pytest.approx(expected["loss"] / 70, rel=1e-5)
    assert result["ece"] == pytest.approx(expected["ece"], abs=1e-4)
    assert result["classes"][9]["name"] == "Ankle boot"
    assert result["weights"]["sha256"] == file_sha256(run.weights)
    assert result["data"]["fingerprint"] == open_beton(run.load_config().data.validation).fingerprint
    assert read_json(run.evaluation("evaluation")) == result


def test_flip_is_the_mean_of_the_logits_of_both_views(run: RunDir) -> None:
    logits, labels = reference(run)
    mirrored, _ = reference(run, lambda x: x.flip(3))
    result = evaluated(run, "flip=true")
    expected = by_hand((logits + mirrored) / 2, labels)
    assert (result["num_top1"], result["num_top5"]) == (expected["top1"], expected["top5"])
    assert result["loss"] == pytest.approx(expected["loss"] / 70, rel=1e-5)
    assert abs(result["loss"] - by_hand(logits, labels)["loss"] / 70) > 1e-3


def test_another_resolution_is_a_centre_crop_resized(run: RunDir) -> None:
    """Half of the side, kept as it is: the pixels in the middle."""
    result = evaluated(run, "data.resolution=16", "data.crop_ratio=0.5")
    expected = by_hand(*reference(run, lambda x: x[:, :, 8:24, 8:24]))
    assert (result["resolution"], result["crop_ratio"]) == (16, 0.5)
    assert (result["num_top1"], result["num_top5"]) == (expected["top1"], expected["top5"])
    assert result["loss"] == pytest.approx(expected["loss"] / 70, rel=1e-5)


def test_a_centre_crop_may_be_resized_as_pillow_does(run: RunDir) -> None:
    def resized(images: Tensor) -> Tensor:
        grey = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        parts = [Image.fromarray(one).resize((40, 40), Image.Resampling.BICUBIC) for one in grey]
        whole = torch.from_numpy(np.stack([np.asarray(part) for part in parts])).permute(0, 3, 1, 2)
        return (whole[:, :, 4:36, 4:36].float() / 255).to(images)

    result = evaluated(run, "data.crop=center", "data.crop_ratio=0.8", "data.interpolation=bicubic")
    expected = by_hand(*reference(run, resized))
    assert (result["resolution"], result["crop_ratio"], result["interpolation"]) == (32, 0.8, "bicubic")
    assert (result["num_top1"], result["num_top5"]) == (expected["top1"], expected["top5"])
    assert result["loss"] == pytest.approx(expected["loss"] / 70, rel=1e-5)
    refused(run, ["data.crop=center", "data.crop_ratio=0.8"], "a result of the same settings")


def test_a_network_that_takes_no_other_size_is_refused(tiny_config: Path) -> None:
    known = load_config(Config, tiny_config, [])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    check_size(network, known, known.data)
    smaller = known.data.model_copy(update={"resolution": 16})
    expected = r"^data\.resolution=16: expected logits .* of images \(2, 3, 16, 16\) in .* mode, found RuntimeError"
    with pytest.raises(InputError, match=expected):
        check_size(network, known, smaller)


def test_draws_of_noise_average_probabilities(run: RunDir) -> None:
    config = run.load_config()
    model = build_model(config.model, config.kap)
    model.load_state_dict(load_file(run.weights))
    model.eval()
    images, labels = pixels(config.data.validation), reference(run)[1]
    probabilities = []
    for draw in range(3):
        logits = []
        for number, batch in enumerate(images.split(BATCH)):
            with torch.no_grad(), kap.noise(model, "fresh", derive_seed(0, "evaluation noise", number, draw)):
                logits.append(model(batch.contiguous(memory_format=torch.channels_last)))
        probabilities.append(torch.cat(logits).double().softmax(1))
    single, averaged = evaluated(run, "noise=fresh"), evaluated(run, "noise=fresh", "draws=3", "name=three")
    for result, mean in ((single, probabilities[0]), (averaged, sum(probabilities) / 3)):
        expected = by_hand(mean.log(), labels)
        assert (result["num_top1"], result["num_top5"]) == (expected["top1"], expected["top5"])
        assert result["loss"] == pytest.approx(expected["loss"] / 70, rel=1e-5)
    assert single["loss"] != averaged["loss"] != evaluated(run, "name=quiet")["loss"]


def test_classes_by_name_are_the_same_images(run: RunDir, tmp_path: Path) -> None:
    """Names in another order mean other labels: what was class 0 counts as class 1, and the other way round."""
    own = run.load_config().data.validation
    names = list(open_beton(own).class_names)
    swapped = renamed(own, tmp_path, [names[1], names[0], *names[2:]])
    logits, labels = reference(run)
    expected = by_hand(logits, torch.tensor([1, 0, *range(2, 10)])[labels])
    result = evaluated(run, f"data={swapped}", "data.classes=by-name")
    assert [one["num_top1"] for one in result["classes"]] == expected["classes"]
    assert [one["name"] for one in result["classes"]] == names


@pytest.mark.parametrize("words", [["backend=ffcv"], ["cache=process", "order=quasi-random"], ["on_device=true"]])
def test_how_the_training_read_its_images_is_not_asked_of_another_machine(
    run: RunDir, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """No FFCV there, or too little memory for all images at once: none of it decides a pixel."""
    expected = evaluated(run)["num_top1"]
    run.evaluation("evaluation").unlink()
    more = ["model.stem=cifar", f"runs_dir={run.root.parent}", *(f"data.{word}" for word in words)]
    run.config.write_text(dump_config(load_config(Config, tiny_config, more)))
    monkeypatch.setattr(backend, "why_no_ffcv", lambda: "No module named 'ffcv'")
    monkeypatch.setattr(resident, "memory_bytes", lambda: 2**10)
    assert evaluated(run)["num_top1"] == expected


def test_two_ranks_write_the_same_file_as_one(run: RunDir, run_ranks: Callable) -> None:
    """Noise and all; and only one of them speaks."""
    words = ["-m", "kapdist.cli", "evaluate", str(run.root), *FAST, "noise=fresh", "draws=2", "flip=true"]
    files = []
    for world_size in (1, 2):
        ends = run_ranks([*words, "name=mine"], world_size)
        assert all(end.code == 0 for end in ends), ends
        assert "expected calibration error" in ends[0].output
        assert all(end.output == "" for end in ends[1:])
        files.append(run.evaluation("mine").read_bytes())
        run.evaluation("mine").unlink()
    assert files[0] == files[1]
    assert json.loads(files[0])["num_images"] == 70


def renamed(beton: Path, folder: Path, names: list[str]) -> Path:
    """The same images under other class names."""
    copy = folder / "renamed.beton"
    shutil.copy(beton, copy)
    manifest = json.loads(manifest_path(beton).read_text())
    info = open_beton(beton)
    manifest["class_names"] = names
    manifest["fingerprint"] = content_fingerprint(info.checksums, info.labels, tuple(names))
    manifest_path(copy).write_text(json.dumps(manifest))
    return copy


def test_what_is_refused(run: RunDir, tmp_path: Path) -> None:
    own = run.load_config().data.validation
    names = list(open_beton(own).class_names)
    swapped = renamed(own, tmp_path, [names[1], names[0], *names[2:]])
    train = run.load_config().data.train
    expected = f"class 0 to be {names[0]!r}, as of {train} (or data.classes=by-name), found {names[1]!r}"
    refused(run, [f"data={swapped}"], expected)
    more = renamed(own, tmp_path, [*names, "hat"])
    refused(run, [f"data={more}"], f"class 10 to be none, as of {train}, found 'hat' (11 classes, not 10)")
    refused(run, ["weights=best"], "best.safetensors: expected the best weights")
    evaluated(run)
    evaluated(run)  # the same again is no conflict
    refused(run, ["flip=true"], "a result of the same settings, weights and images (or another name=)")
    weights = {name: value.clone() for name, value in load_file(run.weights).items()}
    weights["fc.weight"].fill_(3e38)  # finite, but not what it gives
    save_file(weights, run.weights)
    refused(run, ["name=broken"], "weights that give finite logits")
    weights["fc.bias"][0] = torch.nan
    save_file(weights, run.weights)
    refused(run, ["name=broken"], "expected finite weights, found a value that is not in fc.bias")
    assert not run.evaluation("broken").exists()
    run.weights.unlink()
    refused(run, [], "model.safetensors: expected the final weights")


def refused(run: RunDir, words: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluated(run, *words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["draws=3", "noise=off"], "draws above 1 with noise fresh only"),
        (["draws=0", "noise=fresh"], "greater than or equal to 1"),
        (["data.crop_ratio=0"], "greater than 0"),
        (["data.resolution=4"], "greater than or equal to 8"),
        (["noise=loud"], "'fresh'"),
        (["batch=3"], "nearest: batch_size"),
    ],
)
def test_wrong_keys_name_themselves(words: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(EvaluationConfig, None, words)
    assert expected in str(caught.value)


def test_noise_of_a_run_without_any_is_refused(run: RunDir) -> None:
    text = run.config.read_text().replace("noise_std: 0.2", "noise_std: 0.0")
    run.config.write_text(text)
    refused(
        run,
        ["noise=fresh"],
        "noise=fresh: expected a run with noise (kap.noise_std above 0, ",
    )
