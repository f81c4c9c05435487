"""Weights out of checkpoints as other trainers write them, and weights with another head."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kapdist.errors import InputError
from kapdist.models import MODELS
from kapdist.models.weights import PREFIXES, load_weights, within_prefix

State = dict[str, Tensor]


def network(num_classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS["resnet10"](num_classes, width=0.125)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def timm(state: State) -> Any:
    """As timm's CheckpointSaver has it."""
    args = argparse.Namespace(
        model="resnet10", lr=0.1, amp=False, mean=None, decay_epochs=[30, 60], data_dir="/data"
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1).state_dict()
    return {
        "epoch": 3,
        "arch": "resnet10",
        "state_dict": OrderedDict(state),
        "optimizer": optimizer,
        "version": 2,
        "args": args,
        "metric": 71.5,
    }


def torchvision(state: State) -> Any:
    """As torchvision's references/classification/train.py has it, without an average."""
    return {
        "model": OrderedDict(state),
        "optimizer": {},
        "lr_scheduler": {},
        "epoch": 1,
        "args": argparse.Namespace(a=1),
    }


def lightning(state: State) -> Any:
    beside = {"criterion.weight": torch.ones(4), "train_accuracy.correct": torch.zeros(1)}
    whole = OrderedDict(prefixed(state, "net.") | beside)
    parameters = {"lr": 0.1, "name": "resnet10", "layers": [1, 1]}
    return {
        "state_dict": whole,
        "hyper_parameters": parameters,
        "pytorch-lightning_version": "2.4.0",
        "callbacks": {},
    }


def robustness(state: State) -> Any:
    """As the robustness library's AttackerModel under DataParallel has it: the network twice, a normaliser."""
    said = {"new_mean": torch.tensor(MEAN)[:, None, None], "new_std": torch.tensor(STD)[:, None, None]}
    parts = prefixed(said, "module.normalizer.") | prefixed(state, "module.model.")
    parts |= prefixed(said, "module.attacker.normalize.") | prefixed(state, "module.attacker.model.")
    return {"model": OrderedDict(parts), "optimizer": {}, "epoch": 90, "schedule": None}


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

FORMS = {
    "timm": timm,
    "torchvision": torchvision,
    "lightning": lightning,
    "robustness": robustness,
    "lightning, model": lambda state: {"state_dict": prefixed(state, "model.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled within ddp": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "average of weights": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(7)},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_found_in_what_a_trainer_saved(tmp_path: Path, form: str) -> None:
    state = network(seed=1).state_dict()
    torch.save(FORMS[form](state), tmp_path / "checkpoint.pth")
    model = network()
    load_weights(model, tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("form", "name"), [(timm, "state_dict_ema"), (torchvision, "model_ema")])
def test_averaged_weights_are_taken_where_there_are_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: Any, name: str
) -> None:
    trained, averaged = network(seed=1), network(seed=2)
    state = averaged.state_dict()
    saved = AveragedModel(averaged).state_dict() if form is torchvision else state
    torch.save(form(trained.state_dict()) | {name: saved}, tmp_path / "checkpoint.pth")
    model = network()
    with caplog.at_level(logging.INFO):
        load_weights(model, tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert f"{name} is taken, not " in caplog.text


def test_what_is_left_beside_the_network_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(lightning(network().state_dict()), tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO):
        load_weights(network(), tmp_path / "last.ckpt")
    assert "criterion.weight and 1 more: not the network's, and not taken" in caplog.text


def test_another_normaliser_of_the_robustness_library_is_refused_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = robustness(network().state_dict())
    saved["model"]["module.normalizer.new_mean"] = torch.full((3, 1, 1), 0.5)
    torch.save(saved, tmp_path / "robust.pt")
    with pytest.raises(InputError, match=r"expected model\.mean \[0\.48.* made for \[0\.5, 0\.5, 0\.5\]"):
        load_weights(network(), tmp_path / "robust.pt")
    load_weights(network(), tmp_path / "robust.pt", start=True)
    assert "found weights made for [0.5, 0.5, 0.5]" in caplog.text


class Harmless:
    """Of this file: whoever loads it runs the file."""


@pytest.mark.parametrize("args", [argparse.Namespace(a=Harmless()), Harmless(), {"a": [Harmless()]}])
def test_options_that_are_more_than_plain_values_are_no_weights(tmp_path: Path, args: object) -> None:
    torch.save(timm(network().state_dict()) | {"args": args}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"holds more than tensors and could run code \(.*Harmless\)"):
        load_weights(network(), tmp_path / "checkpoint.pth")


def test_weights_of_another_form_are_told_by_the_first_key(tmp_path: Path) -> None:
    state = {key.replace("conv1", "first"): value for key, value in network().state_dict().items()}
    torch.save(prefixed(state, "module."), tmp_path / "other.pth")
    expected = r"conv1\.weight of shape \(8, 3, 7, 7\), found no such key \(but first\.weight\)"
    with pytest.raises(InputError, match=expected):
        load_weights(network(), tmp_path / "other.pth")
    torch.save({"layers.0.w": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"found no such key \(but layers\.0\.w\)"):
        load_weights(network(), tmp_path / "other.pth")


@pytest.mark.parametrize("there", ["another", "the same", "none"])
def test_a_new_head_stays_as_it_is_initialised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    state = network(4 if there == "the same" else 9, seed=1).state_dict()
    if there == "none":
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(timm(state), tmp_path / "old.pth")
    model = network(4)
    head = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("fc.")}
    if there != "the same":
        with pytest.raises(InputError, match=r"fc\.weight of shape \(4, 64\)"):
            load_weights(model, tmp_path / "old.pth", start=True)
    load_weights(model, tmp_path / "old.pth", start=True, new_head=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, head[key] if key in head else state[key]), key
    found = "none in old.pth" if there == "none" else f"({'4' if there == 'the same' else '9'}, 64) in old.pth"
    assert f"model.new_head: fc.weight of shape (4, 64) is new ({found})" in caplog.text


def test_all_but_the_head_has_to_fit_and_there_has_to_be_one(tmp_path: Path) -> None:
    state = network(9).state_dict()
    state["layer4.0.conv2.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(InputError, match=r"layer4\.0\.conv2\.weight of shape .*, found shape \(3,\)"):
        load_weights(network(4), tmp_path / "old.pth", start=True, new_head=True)
    headless = nn.Sequential(nn.Conv2d(3, 4, 1))
    torch.save(headless.state_dict(), tmp_path / "old.pth")
    with pytest.raises(InputError, match=r"model\.new_head: expected a network with a linear layer"):
        load_weights(headless, tmp_path / "old.pth", start=True, new_head=True)


@given(
    st.lists(st.sampled_from(PREFIXES), max_size=4),
    st.sets(st.sampled_from(["metric", "model_of_theirs.x", "zz."])),
)
def test_any_row_of_prefixes_is_dropped_and_the_network_s_own_ones_are_kept(
    prefixes: list[str], beside: set[str]
) -> None:
    own = {"conv.weight": 1, "model.head.weight": 2, "net.model.bias": 3, "module": 4}
    prefix = "".join(prefixes)
    saved: Any = {prefix + key: value for key, value in own.items()} | dict.fromkeys(beside if prefix else (), 0)
    within, rest = within_prefix(saved, set(own))
    assert within == own
    assert set(rest) == (beside if prefix else set())
