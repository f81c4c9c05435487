"""RobustBench's model zoo as it is installed here: its networks, how each is built, what it says of images.

Croce et al. 2021, https://arxiv.org/abs/2010.09670. Its dictionaries name a network by data set, threat model and
name; a function of each builds it, its normalisation inside.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kapdist.errors import InputError
from kapdist.models.imported import import_module, place_of
from kapdist.models.imported import said as said_of
from kapdist.models.normalised import normalised

CUT_OUT = (
    "is published on 288 pixels cut out of images as they are; here the middle 7/8 of the shorter side are taken"
)
SQUASHED = "is published on whole images squashed into a square, from which a centre crop differs"
# Side, share of the shorter side, interpolation, remark.
PREPROCESSINGS: dict[str | None, tuple[int, float, str, str]] = {
    "Res256Crop224": (224, 224 / 256, "bilinear", ""),
    "BicubicRes256Crop224": (224, 224 / 256, "bicubic", ""),
    "Res224": (224, 1.0, "bilinear", SQUASHED),
    "Crop288": (288, 7 / 8, "bilinear", CUT_OUT),
    None: (32, 1.0, "bilinear", ""),  # of CIFAR's, which are taken as they are
}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
# What its networks normalise with: buffers that several of its files lack, and that it then takes from the network.
CONSTANTS = ("mean", "std", "mu", "sigma")


@dataclass(frozen=True)
class Entry:
    """One network of the zoo."""

    dataset: str
    threat: str
    name: str
    says: dict[str, Any]

    @property
    def full_name(self) -> str:
        return f"robustbench:{self.dataset}/{self.threat}/{self.name}"

    def is_called(self, words: str) -> bool:
        """Tell whether NAME, DATASET/NAME, THREAT/NAME or DATASET/THREAT/NAME means this one."""
        *before, name = words.split("/")
        return name == self.name and all(word in (self.dataset, self.threat) for word in before)


def entries(place: str) -> list[Entry]:
    """Return every network of the zoo.

    Raises:
        InputError: it cannot be imported.
    """
    zoo = import_module("robustbench.model_zoo", place).model_dicts
    return [
        Entry(dataset.value, threat.value, name, says)
        for dataset, threats in zoo.items()
        for threat, networks in threats.items()
        for name, says in networks.items()
    ]


def build(entry: Entry) -> nn.Module:
    """Build an entry's network with weights by chance.

    Where it is a normalisation and another network in a row, it is that network, which normalises itself, so that
    files of the bare network's weights fit. Constants of normalisations that a file lacks are the network's.

    Raises:
        InputError: its function downloads weights.
    """
    with without_downloads(entry):
        network: nn.Module = function_of(entry)()
    names = [name for name, _ in network.named_children()]
    if isinstance(network, nn.Sequential) and names == ["normalize", "model"]:
        first, inner = network.children()
        if [name for name, _ in first.named_buffers()] == ["mean", "std"]:
            mean, std = (value.flatten().tolist() for value in first.buffers())
            network = normalised(inner, entry.full_name, mean, std)
    network.MAY_LACK = CONSTANTS  # type: ignore[assignment]
    return network


def function_of(entry: Entry) -> Callable[[], nn.Module]:
    """Return what makes an entry's network: timm, where the zoo has registered it there under such a name."""
    timm: Any = import_module("timm", place_of(entry.full_name))
    name = f"{entry.name.lower().replace('-', '_')}_{entry.dataset}_{entry.threat.lower()}"
    if timm.is_model(name):
        return lambda: timm.create_model(name, num_classes=CLASSES[entry.dataset])
    function: Callable[[], nn.Module] = entry.says["model"]
    return function


@contextlib.contextmanager
def without_downloads(entry: Entry) -> Iterator[None]:
    """Have functions that ask for published weights make the architecture alone."""
    timm: Any = import_module("timm", place_of(entry.full_name))
    create, fetch = timm.create_model, torch.hub.download_url_to_file

    def architecture(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        network: nn.Module = create(name, **arguments)
        return network

    def refuse(*words: Any, **more: Any) -> None:
        expected = "a network that can be built without a download (for Standard_R50: torchvision:resnet50)"
        raise InputError(place_of(entry.full_name), expected, "one whose function downloads weights")

    timm.create_model, torch.hub.download_url_to_file = architecture, refuse
    try:
        yield
    finally:
        timm.create_model, torch.hub.download_url_to_file = create, fetch


def preprocessing(entry: Entry) -> tuple[int, float, str, str]:
    """Return side, share of the shorter side, interpolation, and what numbers of the zoo were got with otherwise.

    Raises:
        InputError: it has a name for it that is not known here.
    """
    name = entry.says.get("preprocessing")
    if name is None and entry.dataset == "imagenet":
        return of_timm(entry)
    if name not in PREPROCESSINGS:
        expected = f"a preprocessing of {', '.join(filter(None, PREPROCESSINGS))}"
        raise InputError(place_of(entry.full_name), expected, str(name))
    return PREPROCESSINGS[name]


def of_timm(entry: Entry) -> tuple[int, float, str, str]:
    """Return what an entry says that registers its network with timm, as the zoo reads it."""
    try:
        said: Any = build(entry).default_cfg
    except Exception as error:
        raise InputError(place_of(entry.full_name), "a network that can be built", said_of(error)) from error
    side = said["input_size"][1]
    return side, side / math.floor(side / said["crop_pct"]), said["interpolation"], ""


def fetch(entry: Entry) -> str:
    """Return Python that writes an entry's published weights to one file."""
    where = f"dataset='{entry.dataset}', threat_model='{entry.threat}'"
    return (
        f"import torch, robustbench as r; "
        f"torch.save(r.load_model('{entry.name}', {where}).state_dict(), '{entry.name}.pth')"
    )
