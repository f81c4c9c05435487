"""A file of weights says what they were made for, and other files load as torch lets them."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kapdist.config import KapConfig, ModelConfig
from kapdist.errors import InputError
from kapdist.kap import KAPConv2d, fold, kapify
from kapdist.models import MODELS
from kapdist.models.build import build_model
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


def norm_first(**options: Any) -> nn.Module:
    return kapify(MODELS["resnet10"](4, width=0.25, **options).eval(), norm_first=True)


def test_plain_weights_start_a_network_with_norms_before_its_averages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As torchvision's checkpoints do, which say nothing of averages."""
    plain = MODELS["resnet10"](4, width=0.25).eval()
    plain(torch.rand(8, 3, 32, 32))
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = norm_first()
    for name, value in model.state_dict().items():
        if ".inner_norm." in name:
            value.fill_(7)
    for start in (False, True):
        caplog.clear()
        load_weights(model, tmp_path / "plain.pth", start=start)
        assert "has no norms before averages (kap.norm_first): they start at identity statistics" in caplog.text
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    expected = kapify(copy.deepcopy(plain))
    for conv in model.modules():
        if isinstance(conv, KAPConv2d):
            assert conv.inner_norm.running_mean.abs().max() == 0
            conv.inner_norm.eps = 0.0
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-5)


def test_half_of_the_norms_before_averages_is_not_taken(tmp_path: Path) -> None:
    state = norm_first().state_dict()
    del state["layer1.0.conv1.inner_norm.weight"]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(InputError, match=r"expected layer1\.0\.conv1\.inner_norm\.weight of .*, found no such key"):
        load_weights(norm_first(), tmp_path / "half.pth")


def test_weights_of_the_other_order_are_refused(tmp_path: Path, file: Path) -> None:
    save_weights(norm_first(), tmp_path / "first")
    load_weights(norm_first(), tmp_path / "first")
    with pytest.raises(InputError, match=r"no key conv1\.inner_norm"):
        load_weights(network(layout="sheet"), tmp_path / "first")
    save_weights(network(layout="sheet"), tmp_path / "after")
    with pytest.raises(InputError, match=r"expected kap\.norm_first True .*, found weights made for False"):
        load_weights(norm_first(), tmp_path / "after")


def test_weights_of_noise_before_the_average_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As older versions described them; noise alone, and averages alone, mean what they did."""

    def older(model: nn.Module) -> Path:
        said = {key: value for key, value in describe(model).items() if key != "kap.norm_first"}
        save_file(model.state_dict(), tmp_path / "older", metadata={"kapdist": json.dumps(said)})
        return tmp_path / "older"

    model = network(noise_std=0.25)
    with pytest.raises(InputError, match=r"kap\.noise_std of noise that comes after .*, found .* 0\.25 before it"):
        load_weights(model, older(model))
    load_weights(model, older(model), start=True)
    assert "weights made with 0.25 before it" in caplog.text
    caplog.clear()
    for same in (network(noise_std=0.0), network(pool_size=1, noise_std=0.25)):
        load_weights(same, older(same))
    assert not caplog.text


def test_norm_first_is_built_or_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = ModelConfig(name="resnet10", width=0.25), KapConfig(pool_size=3, norm_first=True)
    assert build_model(*sections).conv1.inner_norm.num_features == 16
    assert not hasattr(build_model(sections[0], KapConfig(norm_first=True)).conv1, "inner_norm")
    without = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(12, 4))
    monkeypatch.setitem(MODELS, "resnet10", lambda **_: without)
    with pytest.raises(InputError, match=r"^kap\.norm_first: expected .*resnet10.*, found none behind 0 and 1"):
        build_model(*sections)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """torch copies them: integers of a quantised file without their scales, real parts alone."""
    model = nn.Linear(2, 3)
    torch.save({key: value.to(dtype) for key, value in model.state_dict().items()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=rf"expected weight in floating point .*, found {str(dtype)[6:]}"):
        load_weights(model, tmp_path / "weights.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_lower_precisions_load_and_are_asked_whether_they_are_finite(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    state = {key: value.detach().to(dtype) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert torch.equal(model.weight, state["weight"].float())
    torch.save(state | {"bias": torch.full((3,), torch.nan).to(dtype)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="expected finite weights, found a value that is not in bias"):
        load_weights(model, tmp_path / "weights.pt")
