"""Weights come from safetensors or a plain state_dict, fit exactly, and never run code."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kapdist.errors import InputError
from kapdist.models.weights import load_weights

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone._orig_mod.")


def network(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, num_classes))


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", *PREFIXES])
def test_every_form_of_weights_is_read(tmp_path: Path, form: str) -> None:
    source, target = network(), network()
    state = source.state_dict()
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form.endswith("."):
        torch.save({f"{form}{key}": value for key, value in state.items()}, path)
    else:
        torch.save({form: state, "epoch": 3}, path)
    load_weights(target, path)
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key])


WRONG_BYTES = {
    "empty": b"",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
}


def save_case(case: str, path: Path) -> None:
    state = network().state_dict()
    if case == "shape":
        torch.save(network(7).state_dict(), path)
    elif case == "missing":
        torch.save({key: value for key, value in state.items() if key != "0.bias"}, path)
    elif case == "unexpected":
        torch.save(state | {"extra.weight": torch.zeros(2, 3)}, path)
    elif case == "pickled object":
        torch.save({"state_dict": state, "boom": Evil()}, path)
    elif case == "bare pickle":
        path.write_bytes(pickle.dumps({"a": Evil()}))
    elif case == "truncated":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-9])
    elif case == "text":
        path.write_text("not weights at all")
    elif case == "no weights":
        torch.save({"epoch": 3}, path)
    elif case in WRONG_BYTES:
        path.write_bytes(WRONG_BYTES[case])


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("shape", r"expected 2\.weight of shape \(4, 8\), found shape \(7, 8\)"),
        ("missing", r"expected 0\.bias of shape \(2,\), found no such key"),
        ("unexpected", r"expected no key extra\.weight \(the model has none\), found one of shape \(2, 3\)"),
        ("pickled object", r"found a pickle that holds more than tensors and could run code"),
        ("bare pickle", r"found a pickle"),
        ("truncated", r"expected whole safetensors, found a damaged file"),
        ("text", r"found a damaged or foreign file|found a pickle"),
        ("no weights", r"found 'epoch' of type int"),
        ("empty", r"found an empty file"),
        ("pointer", r"found a Git LFS pointer to them"),
        ("page", r"found a web page"),
        ("xml", r"found a web page"),
        ("absent", r"found no such file"),
    ],
)
def test_a_file_that_is_not_these_weights_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_case(case, tmp_path / "weights")
    with pytest.raises(InputError) as caught:
        load_weights(network(), tmp_path / "weights")
    assert re.search(line, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()
