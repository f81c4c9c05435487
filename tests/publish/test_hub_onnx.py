"""ONNX in onnxruntime against the run's own network in torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from publish.conftest import AVERAGE, CLASSES, SIDE, MakeRun, by_chance, lay_run, logits_of
from torch import nn

from kapdist.errors import InputError
from kapdist.publish import onnx_file
from kapdist.publish.card import Card
from kapdist.publish.form import form_of
from kapdist.publish.run import publish

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'kapdist[hub]')")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'kapdist[hub]')")


def test_it_computes_what_the_run_computes(make_run: MakeRun, tmp_path: Path) -> None:
    """On five images, a number that the export never saw; with what is needed to use it inside."""
    run = make_run(kap={"noise_std": 0.3, "norm_first": True})
    done = publish(run.root, tmp_path / "kap.onnx", ["onnx"], Card())
    assert done.files == (tmp_path / "kap.onnx",)
    session = runtime.InferenceSession(tmp_path / "kap.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    expected = logits_of(by_chance(run))
    assert float((found - expected).abs().max()) <= onnx_file.TOLERANCE * float(expected.abs().max())
    model = onnx.load(tmp_path / "kap.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["class_names"]) == CLASSES
    assert said["weights_sha256"] == form_of(run.root).weights_sha256
    assert float(said["largest_difference_from_torch"]) > 0
    assert f"differ from torch's by {float(said['largest_difference_from_torch']):.2g} at most" in done.remarks[0]
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "RandomNormal"}


GROUPED = """
from torch import nn
def build():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 36, 1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(36, 3),
    )
"""


def test_averages_behind_grouped_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not folded, and the file has them as operations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grouped.py").write_text(GROUPED)
    model = {"factory": "grouped.py:build", "num_classes": 3}
    run = lay_run(tmp_path / "runs" / "grouped", model, AVERAGE | {"noise_std": 0.3})
    publish(run.root, tmp_path / "kap.onnx", ["onnx"], Card())
    session = runtime.InferenceSession(tmp_path / "kap.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, logits_of(by_chance(run)), rtol=1e-4, atol=1e-5)


def test_logits_that_differ_are_no_file(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, true = make_run(), onnx_file.traced

    def slightly_wrong(network: nn.Module, resolution: int) -> bytes:
        with torch.no_grad():
            network.fc.bias += 1e-3 * network.fc.weight.abs().max()
        return true(network, resolution)

    monkeypatch.setattr(onnx_file, "traced", slightly_wrong)
    monkeypatch.setattr(onnx_file, "TOLERANCE", 1e-6)
    with pytest.raises(InputError, match=r"--format onnx: expected logits that agree .*, found .* between"):
        publish(run.root, tmp_path / "kap.onnx", ["onnx"], Card())
    assert not (tmp_path / "kap.onnx").exists()


def test_a_file_that_onnxruntime_cannot_run_is_one_line(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, true = make_run(), onnx_file.traced

    def of_the_future(network: nn.Module, resolution: int) -> bytes:
        model = onnx.load_model_from_string(true(network, resolution))
        model.graph.node[0].op_type = "Convolve"
        return model.SerializeToString()

    monkeypatch.setattr(onnx_file, "traced", of_the_future)
    with pytest.raises(InputError, match=r"expected a file that onnxruntime can run, found .*Convolve"):
        publish(run.root, tmp_path / "kap.onnx", ["onnx"], Card())
    assert not (tmp_path / "kap.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(
    package: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"--format onnx: expected {package} \(pip install 'kapdist\[hub\]'\)"):
        publish(make_run().root, tmp_path / "kap.onnx", ["onnx"], Card())


def test_a_network_that_torch_cannot_export_is_one_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real.flatten(1)

    with pytest.raises(InputError, match="--format onnx: expected a network that torch can export, found") as said:
        onnx_file.traced(Odd(), SIDE)
    assert "\n" not in str(said.value)
