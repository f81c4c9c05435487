"""What a factory returns becomes a network like ours, with its own keys; patterns say what is averaged."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kapdist.config import Config, KapConfig, ModelConfig
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.forecast.footprint import footprint
from kapdist.kap import KAPConv2d, fold, noise
from kapdist.kap.where import named_like, without_a_match
from kapdist.models.build import build_model
from kapdist.models.description import describe
from kapdist.models.factory import call_factory, factory_sha256
from kapdist.models.normalised import as_they_are, normalised
from kapdist.models.weights import load_weights, save_weights
from kapdist.plan.training import make_plan
from kapdist.run.files import file_sha256
from kapdist.run.paths import RunDir

OUTSIDE = Path(__file__).parents[1] / "outside.py"
ARGUMENTS = {"num_classes": 5, "channels": 16}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a file and a package that have the factory."""
    shutil.copy(OUTSIDE, tmp_path / "net.py")
    (tmp_path / "nets_of_somebody").mkdir()
    shutil.copy(OUTSIDE, tmp_path / "nets_of_somebody" / "small.py")
    monkeypatch.chdir(tmp_path)
    for name in ("nets_of_somebody", "nets_of_somebody.small"):  # an earlier test's, whose folder is gone
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def section(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"num_classes": 5, "factory": "net.py:build", "arguments": ARGUMENTS} | values
    )


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "factory", ["net.py:build", "./net.py:build", "nets_of_somebody.small:build", "nets_of_somebody.small.build"]
)
def test_a_function_is_found_by_file_and_by_module(factory: str) -> None:
    model = build_model(section(factory=factory), KapConfig())
    assert type(model).__name__ == "Net"
    assert model(images()).shape == (4, 5)
    assert sys.path[0] != str(Path.cwd())
    assert factory_sha256(factory) == file_sha256(OUTSIDE)


def test_a_file_that_changed_at_the_same_time_and_size_is_the_one_that_runs(here: Path, monkeypatch) -> None:
    """Bytecode is told by these two alone; the sha256 of a plan is that of the file."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = []
    for classes in (3, 4):
        (here / "quick.py").write_text(f"import torch\ndef build():\n    return torch.nn.Linear(2, {classes})\n")
        os.utime(here / "quick.py", (1e9, 1e9))
        found.append(call_factory("quick.py:build").out_features)
    assert found == [3, 4]


def test_two_files_get_what_lies_beside_each_whatever_it_is_called(here: Path, monkeypatch) -> None:
    """Python keeps modules by name: the second file's network was made of the first one's parts."""
    for folder, width in (("one", 2), ("two", 3)):
        package = here / folder / "parts_of_nets"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "linear.py").write_text(f"import torch\ndef make():\n    return torch.nn.Linear({width}, 5)\n")
        (here / folder / "width_of_nets.py").write_text(f"WIDTH = {width}\n")
        (here / folder / "net.py").write_text(
            "import torch\n"
            "import width_of_nets\n"
            "def build():\n"
            "    from parts_of_nets.linear import make\n"
            "    return torch.nn.Sequential(make(), torch.nn.Linear(5, width_of_nets.WIDTH))\n"
        )
    (here / "width_of_nets.py").write_text("WIDTH = 4\n")  # the program's own
    monkeypatch.syspath_prepend(here)
    own = importlib.import_module("width_of_nets")
    monkeypatch.delitem(sys.modules, "parts_of_nets", raising=False)
    (here / "two" / "torch").mkdir()  # what is installed stays, whatever a folder has
    for folder, width in (("one", 2), ("two", 3), ("one", 2), ("two", 3), ("two", 3)):
        first, last = call_factory(f"{folder}/net.py:build")
        assert (first.in_features, last.out_features) == (width, width)
        assert (sys.modules["width_of_nets"], sys.modules["torch"]) == (own, torch)


def test_it_sees_normalised_images_and_keeps_its_keys() -> None:
    plain = call_factory("net.py:build", ARGUMENTS).eval()
    keys = list(plain.state_dict())
    logits = plain((images() - 0.25) / 0.5)
    model = normalised(plain, "net.py:build", [0.25] * 3, [0.5] * 3)
    torch.testing.assert_close(model(images()), logits, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    assert describe(model)["model.mean"] == "[0.25, 0.25, 0.25]"
    again = as_they_are(call_factory("net.py:build", ARGUMENTS)).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again((images() - 0.25) / 0.5), logits, rtol=0, atol=0)
    assert describe(again)["model.std"] == "[1.0, 1.0, 1.0]"


def test_the_normalisation_stays_where_a_network_sets_its_forward_by_itself() -> None:
    model = nn.Flatten()
    model.forward = lambda x: x.flatten(1) + 1  # type: ignore[method-assign]
    normalised(model, "net.py:build", [0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(model(images()), (images() - 0.5).div(0.25).flatten(1) + 1)


def test_arguments_are_the_factory_s_own_to_change(here: Path) -> None:
    (here / "greedy.py").write_text("import net\ndef build(sizes): return net.build(sizes.pop())\n")
    arguments = {"sizes": [5, 7]}
    assert call_factory("greedy.py:build", arguments)(images()).shape == (4, 7)
    assert arguments == {"sizes": [5, 7]}


@pytest.mark.parametrize(
    ("patterns", "averaged"),
    [
        (None, {"stem.0", "body.0", "body.3", "again"}),
        ("stem.*", {"stem.0"}),
        (["*.0"], {"stem.0", "body.0"}),
        (["*", "!body.*"], {"stem.0", "again"}),
        (["!body.?"], {"stem.0", "again"}),
        (["body.[03]", "again", "!*.0"], {"body.3", "again"}),
    ],
)
def test_patterns_say_what_is_averaged(patterns: Any, averaged: set[str]) -> None:
    kap = KapConfig.model_validate({"pool_size": 3, "layout": "sheet", "where": patterns})
    model = build_model(section(), kap)
    assert {name for name, module in model.named_modules() if isinstance(module, KAPConv2d)} == averaged
    assert KapConfig.model_validate(kap.model_dump(mode="json")) == kap


def test_patterns_hold_for_our_own_networks_too() -> None:
    kap = KapConfig.model_validate({"pool_size": 3, "where": "layer1.*"})
    model = build_model(ModelConfig(name="resnet10", width=0.25), kap)
    names = [name for name, module in model.named_modules() if isinstance(module, KAPConv2d)]
    assert names == ["layer1.0.conv1", "layer1.0.conv2"]


def test_a_pattern_without_a_match_is_told_from_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
    assert without_a_match(model, ["0", "1", "!0", "!2"]) == ["1", "!2"]
    where = named_like(["layer*", "!layer1"])
    assert [where(name, model) for name in ("layer1", "layer2.0", "Layer2")] == [False, True, False]


@pytest.mark.parametrize("wrong", ["!", "[]", "['']", "3", "!!a"])
def test_what_is_no_pattern(wrong: str) -> None:
    with pytest.raises(InputError, match=r"kap\.where"):
        load_config(Config, None, ["name=x", "data.train=a", "data.validation=b", f"kap.where={wrong}"])


def test_folded_it_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = build_model(section(), KapConfig(pool_size=3, layout="sheet", noise_std=0.5))
    model(images())
    model.eval()
    folded = fold(model, norms=True)
    with noise(model, "off"):
        torch.testing.assert_close(folded(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_weights_that_layers_share_are_written_twice(here: Path) -> None:
    model = build_model(section(), KapConfig())
    save_weights(model, here / "weights.safetensors")
    written = load_file(here / "weights.safetensors")
    assert sorted(written) == sorted(model.state_dict())
    other = build_model(section(), KapConfig())
    load_weights(other, here / "weights.safetensors")
    assert other.again is other.twice
    assert torch.equal(other.again.weight, written["again.weight"])


MINIMAL = ["name=x", "data.train=a", "data.validation=b"]


def test_arguments_are_free_and_may_be_words(here: Path) -> None:
    (here / "x.yaml").write_text(
        "data: {train: a, validation: b}\n"
        "model: {factory: net.py:build, arguments: {a: 1, b: {c: x, d: [1, null]}}}\n"
    )
    words = ["model.arguments.a=0.5", "model.arguments.b.c=true", "model.arguments.new=word"]
    config = load_config(Config, here / "x.yaml", words)
    assert config.model.arguments == {"a": 0.5, "b": {"c": True, "d": [1, None]}, "new": "word"}
    (here / "again.yaml").write_text(dump_config(config))
    assert load_config(Config, here / "again.yaml", ["name=x"]) == config


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.arguments.a=1"], "arguments with a factory only"),
        (["model.factory=a:b", "model.arguments=3"], "model.arguments"),
        (["model.factory=a:b", "model.arguments.x=.nan"], "finite numbers"),
        (["model.factory=a:b", 'model.arguments.x=["a\\0"]'], "text of characters that files can hold"),
        (["model.factory=a:b", "model.width=2"], "no width with a factory, whose own keys go into arguments"),
        (["model.new_head=true"], "new_head with weights only"),
        (["model.argument.a=1"], "expected a known key (nearest: model.arguments)"),
        (["optim.lr.a=1"], "expected a known key"),
    ],
)
def test_keys_that_do_not_go_together(words: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, None, [*MINIMAL, *words])
    assert line in str(caught.value)


def test_a_forecast_weighs_it_though_it_cannot_be_built_without_storage(here: Path) -> None:
    config = load_config(Config, None, [*MINIMAL, "model.factory=net.py:build", "model.arguments.num_classes=5"])
    weighed = footprint(config)
    model = build_model(config.model, config.kap)
    assert weighed.num_parameters == sum(p.numel() for p in model.parameters())
    text = OUTSIDE.read_text().replace("return Net(", "float(torch.ones(1)); return Net(")
    (here / "net.py").write_text(text)
    assert footprint(config) == weighed


def test_a_run_is_read_where_its_factory_cannot_be(here: Path) -> None:
    """What a login node does with a config needs no package of the network's; weighing it does, and says so."""
    config = load_config(Config, None, [*MINIMAL, "model.factory=timm_of_nobody:make", "model.arguments.name=tiny"])
    assert config.model.in_words() == "timm_of_nobody:make(tiny)"
    (here / "config.yaml").write_text(dump_config(config))
    assert RunDir(here).load_config() == config
    assert make_plan(config, 130, 2).steps_per_epoch == 1
    with pytest.raises(InputError, match=r"No module named 'timm_of_nobody' \(if it is a package: pip install"):
        footprint(config)


@pytest.mark.parametrize(("module", "name"), [("timm", "create_model"), ("torchvision.models", "resnet18")])
def test_networks_of_the_zoo_are_trained_like_ours(module: str, name: str) -> None:
    """Their keys, their logits."""
    package = pytest.importorskip(module.partition(".")[0])
    arguments = {"num_classes": 5} | ({"model_name": "resnet18"} if module == "timm" else {})
    model = build_model(section(factory=f"{module}.{name}", arguments=arguments), KapConfig(pool_size=3)).eval()
    assert package
    assert all(isinstance(m, KAPConv2d) for m in model.modules() if isinstance(m, nn.Conv2d))
    stock = call_factory(f"{module}.{name}", arguments).eval()
    stock.load_state_dict(model.state_dict())
    own = build_model(section(factory=f"{module}:{name}", arguments=arguments), KapConfig()).eval()
    own.load_state_dict(model.state_dict())
    mean, std = (torch.tensor(value)[:, None, None] for value in (section().mean, section().std))
    torch.testing.assert_close(own(images()), stock((images() - mean) / std))
