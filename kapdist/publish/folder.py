"""The folder: weights, config.json, the card, and the checksums that `from_pretrained` compares."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import save

from kapdist.config.model import OF_EVERY_NETWORK
from kapdist.environment import package_version
from kapdist.errors import InputError
from kapdist.models.description import describe_weights
from kapdist.models.pretrained import CONFIG, FORMAT, KEY, SUMS, WEIGHTS
from kapdist.models.weights import tensors_of
from kapdist.publish.card import CARD, Card, card_text
from kapdist.publish.form import Form
from kapdist.publish.timm_layout import timm_layout
from kapdist.report.export.run import Files, write
from kapdist.run.files import to_json

OF_THE_MODEL = {"name", "factory", "arguments", "num_classes", "normalise", "mean", "std"} | OF_EVERY_NETWORK


def write_folder(form: Form, out: Path, card: Card, more: Files) -> tuple[Path, ...]:
    """Write the folder, the checksums first: where it was cut short, whoever reads it is told what is missing.

    Args:
        more: files beside the network's own.

    Raises:
        InputError: no way to write to `out`, or what is there would be lost, see `check_folder` and `check_card`.
    """
    check_folder(out)
    layout = timm_layout(form)
    files: Files = {
        WEIGHTS: save(tensors_of(form.model), metadata=describe_weights(form.model)),
        CONFIG: to_json(config_of(form, layout), indent=2) + "\n",
        **more,
    }
    text = card_text(form, card, by_timm=layout is not None)
    check_card(out / CARD, text)
    return write({SUMS: checksums(files), **files, CARD: text}, out)


def config_of(form: Form, layout: dict[str, Any] | None) -> dict[str, Any]:
    """Return config.json: timm's keys, where there are any, and under a key of its own what kapdist needs."""
    model, data = form.config.model, form.config.data
    sections = {
        "model": model.model_dump(mode="json", include=OF_THE_MODEL)
        | {"own": {} if model.factory else model.own_arguments()},
        "kap": form.kap.model_dump(mode="json"),
    }
    said = {
        "format": FORMAT,
        "version": package_version("kapdist"),
        "run": form.run.name,
        "weights_sha256": form.weights_sha256,
        "class_names": list(form.class_names),
        "images": data.model_dump(mode="json", include={"resolution", "crop", "crop_ratio", "interpolation"}),
    }
    return (layout or {}) | {KEY: said | sections}


def check_folder(out: Path) -> None:
    """Raise InputError for weights or a config.json that no export wrote: a run's, for one."""
    for path in (out / WEIGHTS, out / CONFIG):
        if path.exists() and not (out / SUMS).exists():
            raise InputError("--out", "a folder of its own, or that of an earlier export", f"{path} without {SUMS}")


def check_card(path: Path, text: str) -> None:
    """Raise InputError for a card that would be lost."""
    if path.is_file() and path.read_bytes() != text.encode():
        expected = "no card yet, or the one that this export writes (move it away, or choose another --out)"
        raise InputError(path, expected, "another")


def checksums(files: Files) -> str:
    """Return the lines of SHA256SUMS; the card is not among them, as people edit it."""
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
