"""A classifier that cannot be attacked meaningfully is refused before anything runs, in one line."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kapdist.attack.images as images_of
from kapdist.attack.model import load_model
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig, Config, KapConfig, ModelConfig
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.kap import KAPConv2d, noise
from kapdist.models import zoo
from kapdist.models.build import build_model
from kapdist.models.factory import call_factory
from kapdist.models.zoo import Stated
from kapdist.records.attack_plan import PlannedModel, run_of
from kapdist.run.paths import AttackDir, RunDir

World = Any

BAD = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        self.change = change

    def forward(self, images):
        return self.change(self.layers(images))

def make(change):
    return lambda: Model(change)

good = make(lambda z: z)
softmax = make(lambda z: z.softmax(1))
log_softmax = make(lambda z: z.log_softmax(1))
nan = make(lambda z: z / 0 * 0)

class Standardised(Model):
    def forward(self, images):
        apart = images - images.mean((1, 2, 3), keepdim=True)
        return self.layers(apart / apart.std((1, 2, 3), keepdim=True))

def standardised():
    return Standardised(None)

class Extra(Model):
    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass

def extra():
    return Extra(None)

def meta():
    return Model(None).to("meta")

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))

def sparse():
    model = Model(None)
    model.register_buffer("mask", torch.eye(3).to_sparse())
    return model

def exits():
    raise SystemExit(3)
four = make(lambda z: z[:, :4])
flat = make(lambda z: z.flatten())
listed = make(lambda z: [z])
detached = make(lambda z: z.detach())
broken = make(lambda z: z @ torch.zeros(3, 3))

class Larger(Model):
    def forward(self, images):
        assert images.shape[2] == 16, f"Input height ({images.shape[2]}) doesn't match model (16)."
        return super().forward(images)

def larger():
    return Larger(None)

def random():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

def dictionary():
    return {"weights": 1}

def raises():
    raise RuntimeError("no GPU here\\nand more")

def wants(argument):
    return good()

number = 3

import functools
partial = functools.partial(Model, lambda z: z)
"""


@pytest.fixture
def bad(world: World) -> World:
    (world.folder / "bad.py").write_text(BAD)
    return world


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("softmax", "expected logits, found probabilities (rows in [0, 1] that sum to 1): AutoAttack's losses"),
        ("nan", "expected finite logits, found NaN or infinity on 6 of 6 images: test image 0, "),
        ("standardised", "infinity on 2 of 6 images: test image 4 (all black: is it divided by its standard dev"),
        ("extra", "expected a state_dict of dense tensors with values (return the model in floating point"),
        ("extra", "found _extra_state, a dict"),
        ("meta", "found layers.1.weight, a tensor on the meta device, without values"),
        ("lazy", "found 1.weight, a lazy parameter without a shape"),
        ("sparse", "found mask, a tensor of torch.float32, torch.sparse_coo"),
        ("exits", "called without arguments, found SystemExit: 3"),
        ("four", "expected logits (batch, classes) = (6, 5), found (6, 4)"),
        ("flat", "expected logits (batch, classes) = (6, 5), found (30,)"),
        ("listed", "expected a tensor of logits, found a list"),
        ("detached", "expected logits that depend differentiably on the images, found logits without a gradient"),
        (
            "broken",
            "expected logits of images (6, 3, 8, 8) in [0, 1] (or others: data.resolution=N), found RuntimeE",
        ),
        (
            "larger",
            "(or others: data.resolution=N), found AssertionError: Input height (8) doesn't match model (16).",
        ),
        ("random", "expected the same weights at every call (sha256"),
        ("dictionary", "expected an nn.Module to be returned, found a dict"),
        ("raises", "called without arguments, found RuntimeError: no GPU here"),
        ("wants", "called without arguments, found TypeError"),
        ("number", "expected a function number in bad.py, found a int"),
        ("absent", "expected a function absent in bad.py, found no such name"),
    ],
)
def test_a_factory_that_gives_no_classifier_is_refused(bad: World, name: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_attack(bad.run, bad.config(model={"factory": f"bad.py:{name}"}))
    assert str(caught.value).startswith(f"model.factory=bad.py:{name}: expected ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plan_notes_what_the_model_states_otherwise_of_its_images(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The world's images are 8 x 8, as they are."""

    def noted(name: str, **shape: object) -> list[str]:
        said = {
            "resolution": 8,
            "crop_ratio": 0.875,
            "interpolation": "bicubic",
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        }
        stated = Stated(**said | shape)
        monkeypatch.setattr(zoo, "stated", lambda factory: stated)
        return [note for note in plan_attack(world.run, world.config(name=name)).notes if "states another" in note]

    assert noted("same") == []
    expected = "the model's own configuration states another way to its images: resolution 224"
    assert noted("other", resolution=224) == [expected]
    described = world.describe_images(None, None)
    data = described.data.model_copy(update={"crop": "random-resized", "crop_ratio": 0.5})
    monkeypatch.setattr(images_of, "describe_images", lambda *words: replace(described, data=data))
    assert noted("cropped") == [expected.replace("resolution 224", "crop_ratio 0.875, interpolation bicubic")]


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("nowhere.to.be.found:build", "found ModuleNotFoundError: No module named 'nowhere'"),
        ("nowhere.py:build", "expected the file nowhere.py, found no such file"),
        ("bad.py", "expected package.module:function or file.py:function, found no colon"),
        ("syntax.py:build", "expected a module that can be imported, found SyntaxError"),
        ("sibling.py:build", "found ImportError"),
    ],
)
def test_a_factory_that_cannot_be_imported_is_refused(bad: World, factory: str, line: str) -> None:
    (bad.folder / "syntax.py").write_text("def build(:\n")
    (bad.folder / "sibling.py").write_text("from bad import nothing_of_the_kind\n")
    with pytest.raises(InputError) as caught:
        plan_attack(bad.run, bad.config(model={"factory": factory}))
    assert line in str(caught.value)


@pytest.mark.parametrize("name", ["good", "log_softmax", "partial"])
def test_logits_and_log_probabilities_are_accepted_in_eval_mode_and_frozen(bad: World, name: str) -> None:
    plan = plan_attack(bad.run, bad.config(model={"factory": f"bad.py:{name}"}))
    model = load_model(plan.model, bad.run)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_detached_model_may_be_attacked_without_gradients(bad: World) -> None:
    config = bad.config(model={"factory": "bad.py:detached"}, attacks=("square",))
    assert not plan_attack(bad.run, config).passes_gradients


def test_logits_of_another_precision_are_noted(bad: World) -> None:
    text = BAD.replace("lambda z: z)", "lambda z: z.double())", 1)
    (bad.folder / "bad.py").write_text(text)
    notes = plan_attack(bad.run, bad.config(model={"factory": "bad.py:good"})).notes
    assert "the model's logits are float64; attacks see them as float32" in notes


def test_a_script_that_ends_python_is_no_module(bad: World) -> None:
    (bad.folder / "script.py").write_text("import sys\nsys.exit('usage: script.py FILE')\n")
    with pytest.raises(InputError, match=r"can be imported, found SystemExit: usage: script\.py FILE"):
        call_factory("script.py:build")


def test_a_factory_is_found_by_module_from_the_current_directory(bad: World) -> None:
    assert isinstance(call_factory("bad:good"), nn.Module)


def test_the_weights_of_a_factory_are_checked_before_a_shard_starts(bad: World) -> None:
    weights = bad.folder / "weights.safetensors"
    state = call_factory("bad.py:good").state_dict()
    save_file({key: value + 1 for key, value in state.items()}, weights)
    plan = plan_attack(bad.run, bad.config(model={"factory": "bad.py:good", "weights": weights}))
    loaded = load_model(plan.model, bad.run).state_dict()
    assert torch.equal(loaded["layers.1.bias"], state["layers.1.bias"] + 1)
    save_file(state, weights)
    with pytest.raises(InputError, match=r"expected the weights that were planned \(sha256"):
        run_shard(RunDir(bad.run).attack("aa").root, 0, 1)


def test_a_pickle_or_weights_of_another_shape_are_refused(bad: World) -> None:
    weights = bad.folder / "weights.pt"
    model = {"factory": "bad.py:good", "weights": weights}
    with pytest.raises(InputError, match="found no such file"):
        plan_attack(bad.run, bad.config(model=model))
    torch.save({"layers": nn.Linear(2, 2)}, weights)
    with pytest.raises(InputError, match="found a pickle that holds more than tensors and could run code"):
        plan_attack(bad.run, bad.config(model=model))
    torch.save({"layers.1.weight": torch.zeros(7, 192)}, weights)
    expected = r"expected layers.1.weight of shape \(5, 192\), found shape \(7, 192\)"
    with pytest.raises(InputError, match=expected):
        plan_attack(bad.run, bad.config(model=model))


def kapdist_run(folder: Path) -> Path:
    """A run directory as training leaves it, of the smallest network there is."""
    model = {"num_classes": 5, "stem": "cifar", "width": 0.05}
    config = Config.model_validate(
        {
            "name": "run",
            "data": {"train": "a.beton", "validation": "b.beton", "resolution": 8},
            "model": model,
            "kap": {"pool_size": 3, "layout": "line", "noise_std": 0.1},
        }
    )
    run = RunDir(folder / "run")
    run.claim(config)
    save_file(build_model(config.model, config.kap).state_dict(), run.weights)
    return run.root


def test_a_run_directory_is_attacked_with_its_own_architecture(world: World) -> None:
    run = kapdist_run(world.folder)
    config = world.config(model={}, num_classes=None, num_images=2)
    plan = plan_attack(run, config)
    assert plan.model.architecture is not None
    assert plan.model.architecture["kap"]["pool_size"] == 3
    attack = AttackDir(run / "attacks" / "aa")
    assert run_of(attack) == run.resolve()
    run_shard(attack.root, 0, 1)
    assert attack.chunk(0).exists()
    with pytest.raises(InputError, match=r"expected logits \(batch, classes\) = \(6, 4\), found \(6, 5\)"):
        plan_attack(run, world.config(name="b", model={}, num_classes=4))


def test_a_directory_that_is_no_run_needs_a_factory(world: World) -> None:
    with pytest.raises(InputError, match="expected a run directory, found nothing"):
        plan_attack(world.run, world.config(model={}))
    assert not world.run.exists()


def test_a_run_that_is_not_finished_has_no_weights(world: World) -> None:
    run = kapdist_run(world.folder)
    RunDir(run).weights.unlink()
    with pytest.raises(InputError, match=r"model.safetensors: expected weights .*, found no such file"):
        plan_attack(run, world.config(model={}))


@pytest.mark.parametrize("eps", ["0", "-4/255", "0/255"])
def test_an_eps_that_is_not_positive_is_refused(tmp_path: Path, eps: str) -> None:
    (tmp_path / "attack.yaml").write_text(f'eps: "{eps}"\n')
    with pytest.raises(InputError, match="eps: expected "):
        load_config(AttackConfig, tmp_path / "attack.yaml")


def test_an_average_that_the_network_cannot_have_is_refused_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        build_model(ModelConfig(width=0.05), KapConfig(pool_size=33))
    assert re.match(r"kap: expected an average that resnet18, width 0.05, allows, found .*33", str(caught.value))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("pool_size", [1, 3])
def test_a_folded_model_is_the_same_function(tmp_path: Path, pool_size: int) -> None:
    """What is attacked with the noise off has the run's own logits."""
    torch.manual_seed(0)
    section = ModelConfig(num_classes=10, stem="cifar", width=0.125)
    model, source = trained(section, KapConfig(pool_size=pool_size, layout="line", noise_std=0.5), tmp_path)
    folded = load_model(source, tmp_path)
    assert not any(isinstance(module, nn.BatchNorm2d | KAPConv2d) for module in folded.modules())
    images = torch.rand(16, 3, 32, 32)
    with noise(model.eval(), "off"):
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)
    as_it_is = load_model(source.model_copy(update={"folded": False}), tmp_path)
    assert any(isinstance(module, nn.BatchNorm2d) for module in as_it_is.modules())


@pytest.mark.filterwarnings("ignore:fold leaves norms")  # those behind a sum
@pytest.mark.parametrize(("name", "width"), [("cnn", 0.25), ("preact_resnet18", 0.25), ("wide_resnet28_10", 0.1)])
def test_a_network_for_small_images_is_attacked_folded(tmp_path: Path, name: str, width: float) -> None:
    torch.manual_seed(0)
    section = ModelConfig(name=name, num_classes=10, width=width, normalise=False)
    model, source = trained(section, KapConfig(pool_size=3, layout="sheet", noise_std=0.1), tmp_path)
    folded = load_model(source, tmp_path)
    assert not any(isinstance(module, KAPConv2d) for module in folded.modules())
    images = torch.rand(8, 3, 16, 16)
    with noise(model.eval(), "off"):
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


def trained(section: ModelConfig, kap: KapConfig, folder: Path) -> tuple[nn.Module, PlannedModel]:
    """A model whose norms have statistics of its own, and what a plan says of it; its weights are in the folder."""
    model = build_model(section, kap)
    model(torch.rand(64, 3, 32, 32))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model, PlannedModel(
        factory=None,
        factory_sha256=None,
        architecture={"model": section.model_dump(mode="json"), "kap": kap.model_dump(mode="json")},
        weights=None,
        weights_sha256="",
        num_classes=10,
        folded=True,
    )
