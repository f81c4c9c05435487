"""Networks by name: built without a download, normalised as their own configuration says, with their own keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoos import without_zoos

from kapdist.config import KapConfig, ModelConfig
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.factory import call_factory, factory_sha256
from kapdist.models.weights import load_weights
from kapdist.models.zoo import Stated, check_weights_named, remark_of, stated
from kapdist.run.files import file_sha256

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
HALF = (0.5, 0.5, 0.5)


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def built(factory: str, **values: Any) -> nn.Module:
    section = {"factory": factory, "num_classes": 5} | values
    return build_model(ModelConfig.model_validate(section), KapConfig()).eval()


def normalised_by_hand(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    mean_, std_ = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (images() - mean_) / std_


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("timm:small", Stated(32, 32 / 33, "bicubic", MEAN, STD)),
        ("timm:small.in21k", Stated(32, 32 / 33, "bicubic", HALF, HALF)),
        ("torchvision:small", Stated(32, 32 / 36, "bilinear", MEAN, STD)),
        ("torchvision:small.V1", Stated(32, 32 / 40, "bilinear", MEAN, STD)),
        ("robustbench:Salman2020Do", Stated(224, 0.875, "bicubic", (0, 0, 0), (1, 1, 1))),
        ("robustbench:Wong2020Fast", Stated(288, 0.875, "bilinear", (0, 0, 0), (1, 1, 1))),
        ("robustbench:cifar10/Own2020", Stated(32, 1.0, "bilinear", (0, 0, 0), (1, 1, 1))),
        ("robustbench:Registered2022", Stated(32, 32 / 33, "bicubic", (0, 0, 0), (1, 1, 1))),
    ],
)
def test_what_a_network_says_of_its_images(zoos: Path, factory: str, expected: Stated) -> None:
    assert stated(factory) == expected
    assert stated("net.py:build") is None
    assert stated("timm:create_model") is None, "a function, as it was before there were names"


@pytest.mark.parametrize(
    ("factory", "mean", "std"),
    [("timm:small", MEAN, STD), ("timm:small.in21k", HALF, HALF), ("torchvision:small", MEAN, STD)],
)
def test_a_network_normalises_as_its_configuration_says_and_keeps_its_keys(
    zoos: Path, factory: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    module = "timm.models.nets" if factory.startswith("timm") else "torchvision.models.nets"
    plain = call_factory(f"{module}:build", {"num_classes": 5, "channels": 24}).eval()
    torch.save({"state_dict": plain.state_dict()}, zoos / "plain.pth")
    model = built(factory, arguments={"channels": 24})
    load_weights(model, zoos / "plain.pth")
    torch.testing.assert_close(model(images()), plain(normalised_by_hand(mean, std)), rtol=0, atol=0)
    assert list(model.state_dict()) == list(plain.state_dict())
    as_it_is = built(factory, arguments={"channels": 24}, normalise=False)
    load_weights(as_it_is, zoos / "plain.pth")
    torch.testing.assert_close(as_it_is(images()), plain(images()), rtol=0, atol=0)
    assert factory_sha256(factory) == file_sha256(Path(sys.modules[module].__file__ or ""))


def test_robustbench_s_normalisation_stays_inside_and_files_of_either_form_fit(zoos: Path) -> None:
    theirs = call_factory("robustbench.model_zoo:normalised").eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, zoos / "theirs.pth")
    torch.save(theirs.model.state_dict(), zoos / "bare.pth")
    for name in ("theirs.pth", "bare.pth"):
        model = built("robustbench:Salman2020Do")
        load_weights(model, zoos / name)
        torch.testing.assert_close(model(images()), theirs(images()), rtol=0, atol=0)


def test_a_file_may_lack_the_constants_of_robustbench_s_own_normalisation(zoos: Path) -> None:
    theirs = call_factory("robustbench.model_zoo:Own").eval()
    state = theirs.state_dict()
    torch.save({"last": {key: value for key, value in state.items() if key != "mu"}}, zoos / "lacks.pth")
    torch.save(state | {"mu": state["mu"] + 0.25}, zoos / "other.pth")
    model = built("robustbench:Own2020", num_classes=10)
    load_weights(model, zoos / "lacks.pth")
    torch.testing.assert_close(model(images()), theirs(images()), rtol=0, atol=0)
    load_weights(model, zoos / "other.pth")
    torch.testing.assert_close(model(images()), theirs(images() - 0.25))


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("timm:smal", "a network that timm 9.9 has (nearest: small, smaller), found 'smal'"),
        ("timm:hf-hub:somebody/small", "expected a network that timm 9.9 has"),
        ("timm:small.in22k", "weights that timm 9.9 has of small (nearest: in21k, in1k), found 'in22k'"),
        ("timm:wide", "expected a network for square images, found one for 32 x 64"),
        ("torchvision:smaller", "that torchvision 9.9 has (nearest: small), found 'smaller'"),
        ("torchvision:small.V3", "weights that torchvision 9.9 has of small (nearest: V2, V1), found 'V3'"),
        ("robustbench:Wong2021Fast", "robustbench 9.9 has (nearest: Wong2020Fast, Own2020), found 'Wong2021Fast'"),
        (
            "robustbench:Standard",
            "one of robustbench:cifar10/Linf/Standard, robustbench:cifar10/L2/Standard, found 2",
        ),
        ("robustbench:Strange2030", "found Res1024"),
        ("robustbench:Standard_R50", "can be built without a download (for Standard_R50: torchvision:resnet50)"),
    ],
)
def test_a_name_that_no_zoo_has(zoos: Path, factory: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        built(factory)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "how"),
    [
        ("timm", "kapdist[zoo]"),
        ("torchvision", "kapdist[zoo]"),
        ("robustbench", "git+https://github.com/RobustBench/robustbench"),
    ],
)
def test_a_zoo_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, package: str, how: str) -> None:
    without_zoos(monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"model.factory={package}:any.*'?{package}"):
        stated(f"{package}:any")
    monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(InputError) as caught:
        stated(f"{package}:any")
    assert f"No module named '{package}' (if it is a package: pip install '{how}')" in str(caught.value)


def test_weights_come_from_a_file(zoos: Path) -> None:
    for arguments in ({"pretrained": True}, {"weights": "DEFAULT"}):
        factory = "timm:small" if "pretrained" in arguments else "torchvision:small"
        with pytest.raises(
            InputError, match=r"expected weights from a file \(model.weights\), as nothing is downl"
        ):
            built(factory, arguments=arguments)
    for factory, words in (
        ("timm:small.in1k", "timm.create_model('small.in1k', pretrained=True).state_dict(), 'small.in1k.pth')"),
        ("torchvision:small", "m.get_model('small', weights='DEFAULT').state_dict(), 'small.pth')"),
        ("robustbench:Wong2020Fast", "r.load_model('Wong2020Fast', dataset='imagenet', threat_model='Linf')"),
    ):
        with pytest.raises(InputError) as caught:
            check_weights_named(factory, None)
        assert words in str(caught.value)
        check_weights_named(factory, "weights.pth")
    check_weights_named("net.py:build", None)


def test_a_mean_beside_a_network_that_states_its_own_is_refused(zoos: Path) -> None:
    with pytest.raises(InputError, match=r"model.mean: expected none beside timm:small, whose own configuration"):
        built("timm:small", mean=HALF)


def test_what_was_published_otherwise_than_a_config_can_say(zoos: Path) -> None:
    assert "squashed into a square" in remark_of("timm:squashed")
    assert "288 pixels cut out of images as they are" in remark_of("robustbench:Wong2020Fast")
    assert remark_of("timm:small") == remark_of("net.py:build") == ""


@pytest.mark.parametrize("factory", ["timm:resnet18", "torchvision:resnet18"])
def test_the_real_ones(factory: str) -> None:
    package, _, name = factory.partition(":")
    module = pytest.importorskip("torchvision.models" if package == "torchvision" else "timm")
    said = stated(factory)
    assert said is not None
    plain = (
        getattr(module, name)(num_classes=5)
        if package == "torchvision"
        else module.create_model(name, num_classes=5)
    )
    model = built(factory)
    model.load_state_dict(plain.state_dict())
    expected = plain.eval()(normalised_by_hand(said.mean, said.std))
    torch.testing.assert_close(model(images()), expected)
    with pytest.raises(InputError, match=r"nearest: .*resnet"):
        stated(f"{package}:resnet19")


def test_training_says_where_a_network_by_path_states_another_normalisation(
    zoos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"name": "small", "num_classes": 5}
    built("timm.create_model", arguments=arguments, mean=MEAN, std=STD)
    assert not caplog.records
    built("timm.create_model", arguments=arguments)
    assert "states mean 0.4, 0.5, 0.6 and std 0.2, 0.25, 0.3, and model.mean and model.std are" in caplog.text
