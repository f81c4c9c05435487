"""A file of weights says what they were made for, and other files load as torch lets them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kapdist.errors import InputError
from kapdist.kap import fold, kapify
from kapdist.models import MODELS
from kapdist.models.description import describe
from kapdist.models.weights import load_weights, save_weights


def network(pool_size: int = 3, layout: str = "line", noise_std: float = 0.0, **options: Any) -> nn.Module:
    model = MODELS["resnet10"](4, width=0.25, **options).eval()
    return kapify(model, pool_size=pool_size, layout=layout, noise_std=noise_std)


@pytest.fixture(name="file")
def averaged_file(tmp_path: Path) -> Path:
    save_weights(network(noise_std=0.25), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def logits(model: nn.Module) -> Tensor:
    return model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_a_file_says_what_its_weights_were_made_for(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == ["kapdist"], "safetensors writes several keys in an order of chance"
    said = json.loads(metadata["kapdist"])
    assert {key: said[key] for key in said if key.startswith("kap.")} == {
        "kap.pool_size": "3",
        "kap.layout": "line",
        "kap.pool_stride": "1",
        "kap.norm_first": "False",
        "kap.noise_std": "0.25",
    }
    assert json.loads(said["model.mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert json.loads(said["model.std"]) == pytest.approx([0.229, 0.224, 0.225])


def test_layers_that_differ_are_said_one_by_one() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    kapify(layers, layout="line", where=lambda name, _: name == "0")
    kapify(layers, pool_size=5, layout="line", noise_std=0.5, where=lambda name, _: name == "1")
    said = describe(layers)
    assert json.loads(said["kap.pool_size"]) == {"0": 3, "1": 5, "2": 1}
    assert json.loads(said["kap.noise_std"]) == {"0": 0, "1": 0.5, "2": 0}
    assert said["kap.layout"] == "line"


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"pool_size": 1}, r"expected kap\.pool_size 1 .*, found weights made for 3; fold them first"),
        ({"pool_size": 5}, r"expected kap\.pool_size 5 .*, found weights made for 3$"),
        ({"layout": "sheet"}, r"expected kap\.layout sheet .*, found weights made for line"),
        (
            {"mean": [0.5, 0.5, 0.5]},
            r"expected model\.mean \[0\.5, .*, found weights made for \[0\.48",
        ),
        ({"std": [0.5, 0.5, 0.5]}, r"expected model\.std \[0\.5"),
    ],
)
def test_weights_made_for_another_function_are_refused(file: Path, other: dict[str, Any], line: str) -> None:
    model = network(**other)
    before = logits(model)
    with pytest.raises(InputError, match=line) as caught:
        load_weights(model, file)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), before)


def test_a_plain_network_is_refused_until_they_are_folded(tmp_path: Path, file: Path) -> None:
    model, plain = network(), MODELS["resnet10"](4, width=0.25).eval()
    for start in (False, True):
        with pytest.raises(InputError, match="fold them first"):
            load_weights(plain, file, start=start)
    load_weights(model, file)
    save_weights(fold(model), tmp_path / "folded.safetensors")
    load_weights(plain, tmp_path / "folded.safetensors")
    torch.testing.assert_close(logits(plain), logits(model))


def test_plain_weights_may_start_a_training_with_an_average(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_weights(network(pool_size=1), tmp_path / "plain")
    with pytest.raises(InputError, match=r"expected kap\.pool_size 3 .*, found weights made for 1"):
        load_weights(network(), tmp_path / "plain")
    with caplog.at_level(logging.WARNING):
        load_weights(network(), tmp_path / "plain", start=True)
    assert "expected kap.pool_size 3 (the model's), found weights made for 1" in caplog.text


def test_other_noise_is_the_same_function_and_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_weights(network(noise_std=0.1), file)
    assert "kap.noise_std 0.1 (the model's), found weights made for 0.25" in caplog.text


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"kapdist": "[]"}, {"kapdist": "{"}])
def test_files_that_say_nothing_load_into_any_model(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(network().state_dict(), tmp_path / "weights", metadata=metadata)
    for model in (network(), network(pool_size=1), network(pool_size=5, mean=[0.5] * 3)):
        load_weights(model, tmp_path / "weights")


def test_norms_without_counters_load_as_torch_lets_them(tmp_path: Path) -> None:
    source, target = network(pool_size=1), network(pool_size=1)
    state = source.state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old")
    load_weights(target, tmp_path / "old")
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())
    torch.save({k: v for k, v in state.items() if k != "bn1.num_batches_tracked"}, tmp_path / "torn")
    with pytest.raises(InputError, match=r"expected bn1\.num_batches_tracked of shape \(\), found no such key"):
        load_weights(target, tmp_path / "torn")


def test_a_prefix_of_the_models_own_is_kept(tmp_path: Path) -> None:
    inner = nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    outer = nn.ModuleDict({"model": inner})
    for prefix in ("", "module.", "_orig_mod.module."):
        state = {f"{prefix}{key}": torch.randn_like(value) for key, value in outer.state_dict().items()}
        torch.save(state, tmp_path / "weights")
        load_weights(outer, tmp_path / "weights")
        assert torch.equal(inner["head"].weight, state[f"{prefix}model.head.weight"])
