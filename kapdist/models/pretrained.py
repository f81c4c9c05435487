"""A folder that `kapdist export RUN --format hub` wrote, back to its network; torch and safetensors are enough."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from kapdist.errors import InputError
from kapdist.kap import fold
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.models.zoo import zoo_of

CONFIG, WEIGHTS, SUMS = "config.json", "model.safetensors", "SHA256SUMS"
KEY = "kapdist"  # of config.json; beside it are timm's
FORMAT = 1
AGAIN = "download it again, or export it again"


class Section(SimpleNamespace):
    """A section of a run's config where there is no pydantic, as `build_model` reads it."""

    def own_arguments(self) -> dict[str, Any]:
        return dict(self.own)

    def in_words(self) -> str:
        return str(self.factory or self.name)


def from_pretrained(folder: Path | str, *, noise: bool = False, factory: str | None = None) -> nn.Module:
    """Return the network in a folder that `kapdist export --format hub` wrote, in evaluation mode, on the CPU.

    It normalises inside: images in [0, 1], (batch, 3, height, width), to logits (batch, classes).

    Args:
        noise: whatever the run's network draws in every pass, activation noise for one, is on, mode "fresh"
            (`kapdist.kap.noise` and `seed_noise` change it); else it is off for good, and the network is plain.
        factory: the function that makes a network that is none of kapdist's and of no zoo's. The folder has its
            name and none of its code, and a folder's word alone has nothing imported.

    Raises:
        InputError: no such folder, a file of it that is missing or altered, a format of a later version, or a
            network that only its factory can make.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        check_file(folder, name)
    said = described(folder)
    network, kap = Section(**said["model"]), Section(**said["kap"])
    if network.factory is not None and not zoo_of(network.factory):
        network.factory = allowed(network.factory, factory, folder)
    model = build_model(network, kap)  # type: ignore[arg-type]  # the config's own need pydantic
    load_weights(model, folder / WEIGHTS)
    model.eval()
    return model if noise else fold(model).eval()


def check_file(folder: Path, name: str) -> None:
    """Raise InputError for a file that is missing or has other bytes than the folder was written with."""
    known = sums(folder)
    path = folder / name
    if not path.is_file():
        raise InputError(path, f"a file of this folder ({AGAIN})", "none")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if known.get(name) != found:
        expected = f"sha256 {str(known.get(name))[:12]}, as {SUMS} has it ({AGAIN})"
        raise InputError(path, expected, f"sha256 {found[:12]}")


def sums(folder: Path) -> dict[str, str]:
    """Return {file: sha256} of a folder; `sha256sum -c` reads the same lines."""
    path = folder / SUMS
    if not path.is_file():
        elsewhere = f"hf download {folder} --local-dir FOLDER brings one from the hub"
        expected = f"a folder of `kapdist export --format hub`, with {SUMS}"
        found = "no such file" if folder.is_dir() else f"no such folder ({elsewhere})"
        raise InputError(path, expected, found)
    lines = (line.split(maxsplit=1) for line in path.read_text(errors="replace").splitlines())
    return {words[1]: words[0] for words in lines if len(words) == 2}


def described(folder: Path) -> dict[str, Any]:
    """Return what config.json says of the network."""
    values = json.loads((folder / CONFIG).read_bytes())
    said: dict[str, Any] = values.get(KEY, {})
    if said.get("format") != FORMAT:
        expected = f"{KEY}.format {FORMAT} (a later kapdist may write another)"
        raise InputError(folder / CONFIG, expected, str(said.get("format")))
    return said


def allowed(named: str, given: str | None, folder: Path) -> str:
    if given is None:
        expected = f"factory={named!r} from you, as code of yours makes this network"
        raise InputError(folder / CONFIG, expected, "none (a folder's word alone has nothing imported)")
    return given
