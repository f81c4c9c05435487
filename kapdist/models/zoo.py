"""Networks by name, `timm:NAME`, `torchvision:NAME`, `robustbench:NAME`, as these packages are installed here.

Architectures only: nothing is ever downloaded, weights come from a file. What the package says of a network's
images goes with its name. A tag behind the name picks one of several published weights by what it says of images:
`timm:resnet50.a1_in1k`, `torchvision:resnet50.IMAGENET1K_V1`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from kapdist.environment import package_version
from kapdist.errors import InputError
from kapdist.models import robustbench
from kapdist.models.imported import import_module, place_of

# Functions that were named so before there were zoos.
NO_NETWORKS = ("timm:create_model",)
# torchvision's that undo its normalisation for their own, which was TensorFlow's, once their weights are loaded.
TRANSFORMED = ("googlenet", "inception_v3")
SQUASHED = "was published for whole images squashed into a square, from which a centre crop differs"


@dataclass(frozen=True)
class Stated:
    """What a network's own configuration says of its images."""

    resolution: int
    """Side of the square images, pixels."""
    crop_ratio: float
    """Share of the shorter side that the centre crop keeps."""
    interpolation: str
    """area, bilinear or bicubic."""
    mean: tuple[float, float, float]
    """Of each channel of images in [0, 1], as `std`; 0 and 1 of a network that normalises inside."""
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Published:
    """One network of a zoo."""

    build: Callable[..., nn.Module]
    """Makes it, with weights by chance."""
    module: str
    """The module that it is made by."""
    stated: Stated
    fetch: str
    """Python that writes its published weights to a file, where there is an internet."""
    remark: str = ""
    """What its numbers were published with and no config can say."""
    beside_weights: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that the zoo itself builds it with for its published weights, and not for weights by chance."""


def zoo_of(factory: str) -> str | None:
    """Return the zoo that a factory names a network of; None of any other factory."""
    name = factory.partition(":")[0]
    return name if ":" in factory and name in ZOOS and factory not in NO_NETWORKS else None


def find(factory: str) -> Callable[..., nn.Module]:
    """Return the function that makes a network of a zoo.

    Raises:
        InputError: the zoo is not installed, or does not know the name.
    """
    return published(factory).build


def stated(factory: str) -> Stated | None:
    """Return what a network's own configuration says of its images; None of factories that are no zoo's.

    Raises:
        InputError: as `find`.
    """
    return published(factory).stated if zoo_of(factory) else None


def module_of(factory: str) -> str:
    """Return the name of the module that makes a zoo's network."""
    return published(factory).module


def packages_of(factory: str | None) -> tuple[str, ...]:
    """Return the packages whose versions decide what a factory's network computes."""
    zoo = zoo_of(factory) if factory else None
    return ("robustbench", "timm", "torchvision") if zoo == "robustbench" else (zoo,) if zoo else ()


def with_classes(factory: str, arguments: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Return what a factory is called with: the number of classes too where the zoo is known to ask for it."""
    asked = {"num_classes": num_classes} if zoo_of(factory) in ("timm", "torchvision") else {}
    return asked | dict(arguments)


def as_published(factory: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a factory is called with for its published weights, where the arguments say nothing else."""
    return {**published(factory).beside_weights, **arguments} if zoo_of(factory) else dict(arguments)


def check_weights_named(factory: str, weights: object) -> None:
    """Raise InputError for a network of a zoo whose weights nobody names: what chance gives nobody asks about."""
    if zoo_of(factory) and weights is None:
        found = f"none, and nothing is downloaded (elsewhere: python -c {published(factory).fetch!r})"
        raise InputError("model.weights", f"a file with the weights of {factory}", found)


def remark_of(factory: str) -> str:
    """Return what a zoo's network was published with and no config can say."""
    remark = published(factory).remark if zoo_of(factory) else ""
    return f"{factory} {remark}" if remark else ""


@cache
def published(factory: str) -> Published:
    package, _, name = factory.partition(":")
    return ZOOS[package](name, factory)


def of_timm(name: str, factory: str) -> Published:
    timm = import_module("timm", place_of(factory))
    models = import_module("timm.models", place_of(factory))
    base, _, tag = name.partition(".")
    if not models.is_model(base):
        raise unknown(factory, f"a network that {version('timm')} has", base, models.list_models())
    tags = [full.partition(".")[2] for full in models.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise unknown(factory, f"weights that {version('timm')} has of {base}", tag, tags)

    def build(**arguments: Any) -> nn.Module:
        refuse_pretrained(factory, arguments, "pretrained")
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return network

    said = models.get_pretrained_cfg(name)
    height, width = said.input_size[1:]
    if height != width:
        raise InputError(place_of(factory), "a network for square images", f"one for {height} x {width}")
    scaled = math.floor(height / said.crop_pct)
    save = f"torch.save(timm.create_model('{name}', pretrained=True).state_dict(), '{name}.pth')"
    return Published(
        build=build,
        module=models.model_entrypoint(base).__module__,
        stated=Stated(height, height / scaled, said.interpolation, tuple(said.mean), tuple(said.std)),
        fetch=f"import timm, torch; {save}",
        remark=SQUASHED if said.crop_mode == "squash" else "",
    )


def of_torchvision(name: str, factory: str) -> Published:
    models = import_module("torchvision.models", place_of(factory))
    base, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if base not in known:
        raise unknown(factory, f"a network for classification that {version('torchvision')} has", base, known)
    weights = models.get_model_weights(base)
    tags = list(weights.__members__)
    if tag and tag not in tags:
        raise unknown(factory, f"weights that {version('torchvision')} has of {base}", tag, tags)

    def build(**arguments: Any) -> nn.Module:
        for key in ("weights", "pretrained"):
            refuse_pretrained(factory, arguments, key)
        network: nn.Module = models.get_model(base, weights=None, **arguments)
        return network

    said = (weights[tag] if tag else weights.DEFAULT).transforms()
    crop, scaled = said.crop_size[0], said.resize_size[0]
    save = f"torch.save(m.get_model('{base}', weights='{tag or 'DEFAULT'}').state_dict(), '{name}.pth')"
    return Published(
        build=build,
        module=models.get_model_builder(base).__module__,
        stated=Stated(crop, crop / scaled, said.interpolation.value, tuple(said.mean), tuple(said.std)),
        fetch=f"import torch, torchvision.models as m; {save}",
        beside_weights={"transform_input": True} if base in TRANSFORMED else {},
    )


def of_robustbench(name: str, factory: str) -> Published:
    entries = robustbench.entries(place_of(factory))
    fitting = [entry for entry in entries if entry.is_called(name)]
    if not fitting:
        wanted, names = name.rpartition("/")[2], sorted({entry.name for entry in entries})
        raise unknown(factory, f"a network that {version('robustbench')} has", wanted, names)
    if len(fitting) > 1:
        several = ", ".join(entry.full_name for entry in fitting)
        raise InputError(place_of(factory), f"one of {several}", f"{len(fitting)} networks called {name}")
    entry = fitting[0]
    resolution, crop_ratio, interpolation, remark = robustbench.preprocessing(entry)
    return Published(
        build=lambda: robustbench.build(entry),
        module=f"robustbench.model_zoo.{entry.dataset}",
        # Its networks normalise inside.
        stated=Stated(resolution, crop_ratio, interpolation, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        fetch=robustbench.fetch(entry),
        remark=remark,
    )


ZOOS: dict[str, Callable[[str, str], Published]] = {
    "timm": of_timm,
    "torchvision": of_torchvision,
    "robustbench": of_robustbench,
}


def version(package: str) -> str:
    return f"{package} {package_version(package) or ''}".rstrip()


def unknown(factory: str, expected: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that nobody knows; it names the nearest."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    nearest = f" (nearest: {', '.join(close)})" if close else ""
    return InputError(place_of(factory), expected + nearest, repr(name))


def refuse_pretrained(factory: str, arguments: dict[str, Any], key: str) -> None:
    if arguments.pop(key, None):
        raise InputError(
            f"model.arguments.{key}",
            f"weights from a file (model.weights), as nothing is downloaded for {factory}",
            "weights of the package's",
        )


NOT_APPLIED = "states a normalisation that is not applied"


def not_heeded(network: nn.Module, factory: str) -> str | None:
    """Return what a network by path says of its images where nothing does it; None where it says nothing."""
    if said := configured(network):
        how = in_words(*said)
    elif type(network).__module__.startswith("torchvision.models."):
        how = "mean and std, as all of torchvision's do"
    else:
        return None
    by_name = "a zoo's name, such as timm:resnet50, normalises inside"
    return f"{factory} {NOT_APPLIED} ({how}): it gets images in [0, 1] as they are; {by_name}"


def states_another(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return in words the normalisation that a network's configuration states, if it is another than this one."""
    said = configured(network)
    return in_words(*said) if said and said != ([*mean], [*std]) else ""


def configured(network: nn.Module) -> tuple[list[float], list[float]] | None:
    """Return mean and std of the configuration that timm gives to its networks."""
    said = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not isinstance(said, Mapping) or "mean" not in said or "std" not in said:
        return None
    return [*map(float, said["mean"])], [*map(float, said["std"])]


def in_words(mean: Sequence[float], std: Sequence[float]) -> str:
    mean_, std_ = (", ".join(f"{value:g}" for value in values) for values in (mean, std))
    return f"mean {mean_} and std {std_}"
