"""The network: the section `model` of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kapdist.config.defaults import MODEL
from kapdist.config.fields import Arguments, Natural, Positive, Probability, Section, StageWidths
from kapdist.config.networks import OF_SOME, NetworkName, keys_of_others


class ModelConfig(Section):
    """Owner: models/."""

    follows = MODEL

    name: NetworkName = "resnet18"
    """Architecture."""
    num_classes: Annotated[int, Field(ge=2)] = 1000
    """Number of logits."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stride 2 and a max pool; cifar: 3x3 stride 1, the only one of networks for small images."""
    width: Positive = 1.0
    """Multiplier of every layer's channels; squares stay squares, and a Wide ResNet's stem stays at 16."""
    widths: StageWidths = "doubling"
    """Channels of the four stages at width 1: doubling is 64, 128, 256, 512; squares is 64, 144, 256, 529, of which
    every sheet is square; or four numbers, which are the channels and go with width 1 alone."""
    expansion: Natural = 1
    """Of cnn, e: its convolutions have 64 e^2, 144 e^2 and 225 e^2 kernels."""
    blurpool: bool = False
    """Low-pass filter before strided convolutions (Zhang 2019)."""
    zero_init_residual: bool = True
    """Start the last norm of every block at zero (Goyal et al. 2017); ResNets alone end blocks with one."""
    dropout: Probability = 0.0
    """Dropout inside the blocks: the pseudo-ensemble baseline."""
    drop_path: Probability = 0.0
    """Chance that an image skips the last block, in training; of earlier blocks it is less (Huang et al. 2016)."""
    normalise: bool = True
    """Subtract mean and divide by std; false takes images in [0, 1] as they are and reads neither."""
    dropout_kind: Literal["1d", "2d"] = "1d"
    """What dropout drops: single values (1d), or whole channels of an image (2d)."""
    dropout_draws: Literal["training", "always"] = "training"
    """When it does: in training; or always, in evaluation too (Gal & Ghahramani 2016), as a noise that is fresh,
    fixed or off like the activation noise."""
    members: Natural = 1
    """Independent networks, each from a seed of its own, that are trained together as one model, on their mean."""
    members_mean: Literal["logits", "probabilities"] = "logits"
    """What an ensemble's logits are: the mean of its members' logits, or the log of their mean probability."""
    random_member: bool = False
    """In evaluation and attack with noise on, each image goes through one member, drawn for it; off: the mean."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean of images in [0, 1]; the model normalises inside. A zoo's network states its own."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of images in [0, 1]."""
    weights: Path | None = None
    """Initial weights, safetensors, a plain state_dict or a trainer's checkpoint; torchvision's names. Of an
    ensemble: its own, one network's for every member, or a file of each, whose number `{member}` in the path is."""
    new_head: bool = False
    """Leave the last linear layer as it is initialised, whatever `weights` have for it, to learn other classes."""
    factory: str | None = None
    """`package.module:function` or `file.py:function` that returns another network, for which `name` and the keys
    of our own ones mean nothing; a file is looked up from the current directory. Or a network of a zoo that is
    installed: `timm:NAME`, `torchvision:NAME`, `robustbench:NAME`."""
    arguments: Arguments = Field(default_factory=dict)
    """What the factory is called with, by name: any values. Zoos' networks get `num_classes` by themselves."""

    @model_validator(mode="after")
    def keys_go_with_a_factory(self) -> ModelConfig:
        if self.factory is None and self.arguments:
            raise ValueError("arguments with a factory only")
        fields = type(self).model_fields
        other = [key for key in OF_OUR_OWN if getattr(self, key) != fields[key].default]
        if self.factory is not None and other:
            raise ValueError(f"no {other[0]} with a factory, whose own keys go into arguments")
        return self

    @model_validator(mode="after")
    def a_new_head_is_of_weights(self) -> ModelConfig:
        if self.new_head and self.weights is None:
            raise ValueError("new_head with weights only")
        return self

    @model_validator(mode="after")
    def has_what_its_network_has(self) -> ModelConfig:
        for key in sorted(self.of_others()):
            names, absent = OF_SOME[key]
            if self.factory is None and getattr(self, key) != absent:
                only = f"other values go with {', '.join(names)}"
                raise ValueError(f"{key} {str(absent).lower()} with {self.name} ({only})")
        if isinstance(self.widths, tuple) and self.width != 1:
            raise ValueError("width 1 with widths in numbers: they are the channels themselves")
        return self

    @model_validator(mode="after")
    def an_ensemble_has_several(self) -> ModelConfig:
        if self.members == 1 and (self.random_member or self.members_mean != "logits"):
            raise ValueError("random_member and members_mean with members above 1 only")
        return self

    def of_others(self) -> set[str]:
        """Return the keys that are for other networks than this one."""
        return keys_of_others(self.name)

    def own_arguments(self) -> dict[str, Any]:
        """Return what the network of this name is called with."""
        return self.model_dump(exclude=NOT_OF_A_NETWORK | self.of_others())

    def in_words(self) -> str:
        """Return the network and how wide it is; of a factory, what words it is called with."""
        if self.factory is not None:
            called_with = [value for value in self.arguments.values() if isinstance(value, str)]
            return f"{self.factory}({', '.join(called_with)})" if called_with else self.factory
        words: list[str] = [self.name]
        if self.expansion != 1:
            words.append(f"expansion {self.expansion}")
        if self.widths != "doubling":
            words.append(f"widths {self.widths if isinstance(self.widths, str) else list(self.widths)}")
        if self.width != 1:
            words.append(f"width {self.width:g}")
        if self.members > 1:
            words.append(f"{self.members} members")
        return ", ".join(words)


# What is made of any network, whatever its own constructor takes.
OF_EVERY_NETWORK = {"members", "members_mean", "random_member", "dropout_kind", "dropout_draws"}
NOT_OF_A_NETWORK = {"name", "weights", "new_head", "factory", "arguments"} | OF_EVERY_NETWORK
OF_OUR_OWN = ("width", "dropout", *OF_SOME)  # networks, among the keys of a model
