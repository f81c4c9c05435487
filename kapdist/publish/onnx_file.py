"""ONNX of a run's network, noise off: images in [0, 1], normalised inside, to logits; a batch of any size."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from kapdist.environment import package_version
from kapdist.errors import InputError, first_line
from kapdist.kap import fold, noise
from kapdist.models.shown import shown_images
from kapdist.publish.form import Form
from kapdist.run.files import to_json
from kapdist.run.installed import need

FILE = "model.onnx"
OPSET = 17  # of 2022: what most runtimes know
TOLERANCE = 1e-4  # of the largest logit: float32, summed in another order, norms folded
PLACE = "--format onnx"


def onnx_bytes(form: Form) -> tuple[bytes, float]:
    """Return the file, and by how much onnxruntime's logits differ from torch's of the run's own network, at most.

    Raises:
        InputError: a package is missing, torch cannot export the network, or the logits differ by more than
            TOLERANCE.
    """
    need("onnx", "onnxruntime", place=PLACE)
    import onnx

    content = traced(deployed(form), form.config.data.resolution)
    difference = parity(content, form)
    model = onnx.load_model_from_string(content)
    model.doc_string = f"{form.run.name}, exported by kapdist: images in [0, 1], RGB, to logits"
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata(form, difference).items()})
    onnx.checker.check_model(model)
    return model.SerializeToString(), difference


def deployed(form: Form) -> nn.Module:
    """Return the network with the fewest operations: norms too are folded, where torch.fx can follow it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of norms that stay
        try:
            return fold(form.model, norms=True).eval()
        except ValueError:
            return fold(form.model).eval()


def traced(network: nn.Module, resolution: int) -> bytes:
    batch = {0: "batch"}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the newer exporter needs another package and ten times as long
        path = Path(folder) / FILE
        try:
            torch.onnx.export(
                network,
                (shown_images(network, resolution),),
                path,
                dynamo=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": batch, "logits": batch},
                opset_version=OPSET,
            )
        except Exception as error:  # torch raises whatever the network leads it to
            raise InputError(PLACE, "a network that torch can export", first_line(error)) from None
        return path.read_bytes()


def parity(content: bytes, form: Form) -> float:
    """Compare a batch of six fixed images, of three and of one with torch; return the largest difference.

    Raises:
        InputError: it is above TOLERANCE, or onnxruntime cannot run the file.
    """
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    images = shown_images(form.original, form.config.data.resolution)
    with torch.no_grad(), noise(form.original, "off"):
        expected: Tensor = form.original(images)
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        batches = [images[:size].numpy() for size in (6, 3, 1)]
        found = [torch.from_numpy(session.run(["logits"], {"images": batch})[0]) for batch in batches]
    except Exception as error:  # an operation that it lacks, a shape that it infers otherwise: each of its own type
        raise InputError(PLACE, "a file that onnxruntime can run", first_line(error)) from None
    differences = [(logits - expected[: len(logits)]).abs().max() for logits in found]
    difference, most = float(torch.stack(differences).max()), TOLERANCE * float(expected.abs().max())
    if not difference <= most:
        agreement = f"logits that agree with torch's within {most:.3g} ({TOLERANCE:g} of the largest)"
        raise InputError(PLACE, agreement, f"{difference:.3g} between them")
    return difference


def metadata(form: Form, difference: float) -> dict[str, object]:
    """Return what the file says of itself."""
    data = form.config.data
    return {
        "kapdist": package_version("kapdist"),
        "run": form.run.name,
        "weights_sha256": form.weights_sha256,
        "noise": "off",
        "images": f"RGB in [0, 1], float32, (batch, 3, {data.resolution}, {data.resolution}); normalised inside",
        "crop_ratio": 1.0 if data.crop == "none" else data.crop_ratio,
        "interpolation": data.interpolation,
        "class_names": to_json(list(form.class_names)),
        "largest_difference_from_torch": difference,
    }
