"""A network by other people is trained, resumed, exported, evaluated and attacked like our own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from held import held
from processes import Finished, end_ranks, kill_ranks_after, start_ranks
from safetensors.torch import load_file

from kapdist.attack.model import load_model
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig, Config
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import load_config
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.kap import KAPConv2d, noise, noise_state
from kapdist.models.build import build_model
from kapdist.models.factory import call_factory
from kapdist.models.normalised import as_they_are
from kapdist.models.weights import load_weights
from kapdist.plan.training import make_plan
from kapdist.run.paths import RunDir
from kapdist.train.evaluate_run import evaluate_run
from kapdist.train.job import initial_model
from kapdist.train.optim import parameter_groups
from kapdist.train.trainable import check_trainable

ROOT = Path(__file__).parents[2]
OUTSIDE = ROOT / "tests" / "outside.py"

CONFIG = """
base: tiny.yaml
model:
  name: resnet18
  width: 1
  factory: net.py:build
  arguments: {{num_classes: "${{model.num_classes}}", channels: 16}}
kap: {{where: ["*", "!body.0"], layout: sheet}}
train: {{checkpoint_every_steps: 2}}
"""

WORDS = ["-m", "kapdist.cli", "train", "outside.yaml"]


@pytest.fixture
def folder(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py and outside.yaml, and the current directory."""
    there = tiny_config.parent
    shutil.copy(OUTSIDE, there / "net.py")
    (there / "outside.yaml").write_text(CONFIG.format())
    monkeypatch.chdir(there)
    return there


@pytest.mark.slow
def test_two_ranks_are_killed_and_continued_to_the_same_bits_and_the_run_is_attacked(
    folder: Path, run_ranks: Callable[..., list[Finished]]
) -> None:
    ends = run_ranks([*WORDS, "name=whole"], 2)
    assert [end.code for end in ends] == [0, 0], ends
    assert "no gradient reaches unused.weight and 1 more: not trained" in ends[0].output
    whole, killed = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "killed")
    kill_ranks_after(killed.latest, start_ranks([*held(folder, 13), *WORDS[2:], "name=killed"], 2, folder))
    assert not killed.done.exists()
    ends = end_ranks(start_ranks([*WORDS, "name=killed"], 2, folder), 240)
    assert [end.code for end in ends] == [0, 0], ends
    assert "continuing from" in ends[0].output
    first, second = load_file(whole.weights), load_file(killed.weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    assert "stem.0.weight" in first, "the network's own keys"
    assert "mean" not in first
    assert torch.equal(first["again.weight"], first["twice.weight"])
    plain = build_model(whole.load_config().model, whole.load_config().kap)
    load_weights(plain, whole.weights)
    evaluated(whole)
    attacked(whole)
    refused_with_another_file(folder, whole)


def evaluated(run: RunDir) -> None:
    config = EvaluationConfig(device="cpu", threads=1, workers=1, batch_size=35)
    result = evaluate_run(run.root, config)
    assert result is not None
    assert result.num_images == 70
    last = [json.loads(line) for line in run.metrics.read_text().splitlines() if '"evaluate"' in line][-1]
    assert result.top1 == pytest.approx(last["top1"], abs=1 / 70)


def attack_of(**values: object) -> AttackConfig:
    few = {"num_images": 4, "chunk_size": 4, "eps": 8 / 255, "screen": 1, "threads": 1, "device": "cpu"}
    return AttackConfig.model_validate(
        {"name": "a", "attacks": ("random-noise",), "random_draws": 3} | few | values
    )


def attacked(run: RunDir) -> None:
    plan = plan_attack(run.root, attack_of())
    assert plan.model.folded
    assert plan.model.factory is None
    assert plan.model.factory_sha256 == run.recorded()["factory_sha256"]
    network, as_it_is = load_model(plan.model, run.root), plan.model.model_copy(update={"folded": False})
    other = load_model(as_it_is, run.root)
    assert isinstance(other.again, KAPConv2d)
    assert not isinstance(other.body[0], KAPConv2d)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with noise(other, "off"):
        torch.testing.assert_close(network(images), other(images), rtol=1e-3, atol=1e-4)
    run_shard(run.attack("a").root, 0, 1)
    assert run.attack("a").chunk(0).exists()


def refused_with_another_file(folder: Path, run: RunDir) -> None:
    """Another file under the name of the factory is no longer the network that was trained."""
    with (folder / "net.py").open("a") as file:
        file.write("\n# changed\n")
    expected = (
        r"model\.factory=net\.py:build: expected the factory's file as it was \(sha256 .*found another sha256"
    )
    with pytest.raises(InputError, match=expected):
        plan_attack(run.root, attack_of(name="b"))
    run.attack("a").chunk(0).unlink()
    with pytest.raises(InputError, match=expected):
        run_shard(run.attack("a").root, 0, 1)
    with pytest.raises(InputError, match=expected):
        evaluate_run(run.root, EvaluationConfig(device="cpu", threads=1, workers=1, name="again"))


def test_a_run_that_began_with_another_file_is_not_continued(folder: Path, kapdist) -> None:
    words = ["train.epochs=1", "train.batch_size=65", "train.checkpoint_every_steps=1"]
    assert kapdist("train", "outside.yaml", *words).code == 0
    run = RunDir(folder / "runs" / "outside")
    for path in (run.done, run.weights, run.best_weights):
        path.unlink()
    with (folder / "net.py").open("a") as file:
        file.write("\n# changed\n")
    end = kapdist("train", "outside.yaml", *words)
    assert (end.code, end.output.count("\n")) == (2, 1)
    assert "found another sha256" in end.output
    run.plan.unlink()  # the checkpoint says it too
    end = kapdist("train", "outside.yaml", *words)
    assert (end.code, "of net.py:build as its file is, found one of another file" in end.output) == (2, True), end


MANY = """
import torch
from outside import Net, Scale
from torch import nn

def flat(num_classes): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, num_classes))
def half(): return Net(10).half()
def frozen(): return Net(10).requires_grad_(False)
def nothing(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Detached())
def number(): return 3
def missing(): import timm_of_nobody
def zoo(): raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
def narrow(): return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(1), nn.LazyLinear(10))
def tight(): return nn.Sequential(nn.Conv2d(3, 8, 32), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
def in_place(): return nn.Sequential(InPlace(), Net(10))
def two(): return Two(10)
def softmax(): return nn.Sequential(Net(10), nn.Softmax(1))
def raises(images=1): raise OSError("weights.pt is not there\\nand more")
def extra(): return Extra(10)
def has_a_mean(): return HasAMean(10)

class Detached(nn.Linear):
    def __init__(self): super().__init__(3, 10)
    def forward(self, x): return super().forward(x).detach()

class InPlace(nn.Module):
    def forward(self, x): return x.mul_(2)

class Two(Net):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits

class Extra(Net):
    def get_extra_state(self): return {"calls": 1}
    def set_extra_state(self, state): pass

class HasAMean(Net):
    mean = 0.5
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("many")
    shutil.copy(OUTSIDE, there / "outside.py")
    (there / "many.py").write_text(MANY)
    return there


def begun(words: list[str]) -> torch.nn.Module:
    """What a training does with its network before its directory is claimed, without images."""
    config = load_config(Config, None, ["name=x", "data.train=a", "data.validation=b", *words])
    plan = make_plan(config, 130, 1)
    model = initial_model(config, Ranks())
    check_trainable(model, config, plan)
    return model


REFUSED = [
    ("flat", ["data.resolution=40"], "images (2, 3, 40, 40) in training mode, found RuntimeError: mat1 and mat2"),
    ("half", [], "expected parameters in float32 (engine.precision says"),
    ("frozen", [], "expected a network with parameters to train, found none that requires a gradient"),
    (
        "nothing",
        [],
        "expected logits that depend differentiably on the parameters, found logits without a gradient",
    ),
    ("number", [], "expected an nn.Module to be returned, found a int"),
    ("missing", [], "No module named 'timm_of_nobody' (if it is a package: pip install 'timm_of_nobody')"),
    ("zoo", [], "No module named 'torchvision' (if it is a package: pip install 'kapdist[zoo]')"),
    ("narrow", [], "3.weight, a lazy parameter without a shape"),
    ("two", [], "in training mode, found a tuple (auxiliary heads? its arguments leave them out)"),
    ("softmax", [], "expected logits, found probabilities"),
    ("raises", [], "when called without arguments, found OSError: weights.pt is not there"),
    ("raises", ["model.arguments.images=2"], "when called with {'images': 2}, found OSError"),
    (
        "raises",
        ["model.arguments.nothing=2"],
        "found TypeError: raises() got an unexpected keyword argument 'nothing'",
    ),
    ("extra", [], "found _extra_state, a dict"),
    ("has_a_mean", [], "without a mean of its own (or model.normalise=false, if it normalises inside), found one"),
    ("absent", [], "expected a function absent in many.py, found no such name"),
    ("nine", [], "found (2, 9) (model.num_classes, or the factory's own number in model.arguments)"),
    ("good", ["kap.pool_size=3", "kap.where=stam.*"], "kap.where: expected patterns that have names of its convo"),
    ("good", ["kap.pool_size=3", "kap.where=[stem.*, '!bod']"], "1 more), found '!bod'"),
    (
        "good",
        ["kap.pool_size=17"],
        "kap: expected an average that many.py:good, allows, found stem.0: pool_size 17 does not fit 16 channels",
    ),
    (
        "tight",
        ["train.batch_size=1"],
        "(1, 10) of images (1, 3, 32, 32) in training mode, found ValueError: Expected",
    ),
]


@pytest.mark.parametrize(("name", "words", "line"), REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(
    many: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], line: str
) -> None:
    monkeypatch.chdir(many)
    more = "def good(): return Net(10)\ndef nine(): return Net(9)\n"
    (many / "many.py").write_text(MANY + more)
    classes = ["model.arguments={num_classes: 10}"] if name == "flat" else []
    with pytest.raises(InputError) as caught:
        begun(["model.num_classes=10", f"model.factory=many.py:{name}", *classes, *words])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_writes_into_its_images_is_refused(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is normalised inside, it writes into what that makes."""
    monkeypatch.chdir(many)
    (many / "many.py").write_text(MANY)
    words = [
        "name=x",
        "data.train=a",
        "data.validation=b",
        "model.num_classes=10",
        "model.factory=many.py:in_place",
    ]
    config = load_config(Config, None, words)
    plan = make_plan(config, 130, 1)
    check_trainable(initial_model(config, Ranks()), config, plan)
    with pytest.raises(InputError, match="found images changed in place"):
        check_trainable(as_they_are(call_factory("many.py:in_place")), config, plan)


def test_what_is_shown_beforehand_leaves_no_trace(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, noise and torch's generator are as they were; what no gradient reaches is frozen."""
    monkeypatch.chdir(many)
    (many / "many.py").write_text(MANY + "def good(): return Net(10, dropout=0.5)\n")
    words = ["name=x", "data.train=a", "data.validation=b", "model.num_classes=10", "model.factory=many.py:good"]
    config = load_config(Config, None, [*words, "kap.pool_size=3", "kap.noise_std=0.5"])
    model = initial_model(config, Ranks())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator, streams = torch.get_rng_state(), noise_state(model)
    check_trainable(model, config, make_plan(config, 130, 1))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert {key: value.tolist() for key, value in noise_state(model).items()} == {
        key: value.tolist() for key, value in streams.items()
    }
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["unused.weight", "unused.bias"]


def test_a_parameter_that_stays_as_it_came_is_not_trained_and_has_no_place_in_the_optimizer(many: Path) -> None:
    model = call_factory(f"{many / 'outside.py'}:build", {"num_classes": 10})
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    groups = parameter_groups(model, 0.1)
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(10, 32)], [(10,)]]


def test_the_example_can_be_trained_and_averages_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(Config, ROOT / "examples" / "own_network.yaml")
    model = initial_model(config, Ranks())
    check_trainable(model, config, make_plan(config, 60_000, 2))
    averaged = [name for name, module in model.named_modules() if isinstance(module, KAPConv2d)]
    assert averaged == ["blocks.0.pointwise", "blocks.1.pointwise"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_fine_tuning_starts_from_all_weights_but_the_head_s(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(many)
    trained = call_factory("outside.py:build", {"num_classes": 100})
    torch.save({"state_dict": {f"net.{k}": v for k, v in trained.state_dict().items()}}, many / "last.ckpt")
    words = ["model.num_classes=10", "model.factory=outside.py:build", "model.arguments={num_classes: 10}"]
    words += ["model.weights=last.ckpt", "kap.pool_size=3"]
    with pytest.raises(InputError, match=r"head\.weight of shape \(10, 32\), found shape \(100, 32\)"):
        begun(words)
    model = begun([*words, "model.new_head=true"])
    assert "model.new_head: head.weight of shape (10, 32) is new ((100, 32) in last.ckpt)" in caplog.text
    fresh = begun([word for word in words if "weights" not in word])
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key.startswith("head.") else trained).state_dict()[key]), key
