"""The knobs of an attack and of what else is found out about a trained model: a config file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from kapdist.config.defaults import ATTACK, ATTACK_EPS, ATTACKED_IMAGES
from kapdist.config.fields import (
    CORRUPTIONS,
    Arguments,
    Corruption,
    Epsilon,
    ImageChoice,
    Name,
    Natural,
    Off,
    Positive,
    PublishedName,
    Section,
    Severity,
    Words,
)
from kapdist.config.images import ImagesConfig
from kapdist.config.surrogates import TRANSFER, Surrogates, transfers


class AttackedModelConfig(Section):
    """Owner: attack/model.py. The model of a run directory, or any other one."""

    factory: str | None = None
    """`package.module:function` or `file.py:function` that returns the classifier, or a network of a zoo that is
    installed, `timm:NAME`, `torchvision:NAME`, `robustbench:NAME`; default: the run's own model."""
    arguments: Arguments = Field(default_factory=dict)
    """What the factory is called with, by name: any values."""
    weights: Path | None = None
    """Weights for the factory's model, safetensors or a plain state_dict; a zoo's network needs them."""

    @model_validator(mode="after")
    def keys_go_with_a_factory(self) -> AttackedModelConfig:
        if self.factory is None and self.arguments:
            raise ValueError("arguments with a factory only")
        return self


class RemediesConfig(Section):
    """Owner: sanity/remedies.py. Stronger attacks that a cause calls for, on the images that are left."""

    after: Literal["warn", "fail", "never"] = "warn"
    """What they follow: a check that warned or failed, one that failed, or nothing."""
    iterations: Natural = 100
    """Iterations of each PGD among them."""
    restarts: Natural = 4
    """Random starts of the one with more starts, and members that a randomised ensemble is attacked from."""
    draws: Annotated[int, Field(ge=2)] = 40
    """Draws of the model's randomness, or points near by, that a gradient is averaged over."""
    queries: Natural = 2000
    """Queries per image of the attacks by scores or by classes alone."""


class SanityConfig(Section):
    """Owner: sanity/. How much effort goes into finding out whether an attack's number can be believed."""

    num_images: Natural | None = None
    """Images to examine, the first of the attack's choice; default: 64, or all where there are fewer."""
    iterations: Natural = 20
    """Iterations of PGD; twice as many must break no more."""
    restarts: Natural = 5
    """Random starts of PGD; together they must break hardly more than the first."""
    draws: Annotated[int, Field(ge=2)] = 10
    """Draws of a noisy model's noise that an attack averages over; twice as many must break no more."""
    queries: Natural = 500
    """Queries of the Square attack, which must break nothing that PGD leaves."""
    surrogate: Surrogates = ()
    """Another run or factory, best an undefended model, or several: adversarial images of theirs must break nothing
    that PGD leaves."""
    remedies: RemediesConfig = RemediesConfig()
    """What is done about a cause that was found."""


AttackName = Literal[
    "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "random-noise", "hard-label", "transfer", "fmn"
]


def is_function(attack: str) -> bool:
    """Return whether an attack is a function of the user's: `FILE.py:function` or `package.module:function`."""
    return ":" in attack and not attack.startswith(f"{TRANSFER}:")


def known_or_a_function(attack: str) -> str:
    if attack not in get_args(AttackName) and not is_function(attack):
        raise ValueError(f"{', '.join(get_args(AttackName))}, or FILE.py:function for an attack of your own")
    return attack


def size_name(eps: float) -> str:
    """Return a size as the columns of the records have it in their names."""
    return f"{eps:.6g}"


def attack_of_stage(stage: str, eps: float) -> str:
    """Return the attack whose stage this is: that at one of several eps is named ATTACK@EPS."""
    return stage.removesuffix(f"@{size_name(eps)}")


ListedAttack = Annotated[str, AfterValidator(known_or_a_function)]


class CorruptionsConfig(Section):
    """Owner: corruptions/. What `attack corruptions` does to images."""

    kinds: tuple[Corruption, ...] = CORRUPTIONS
    """Corruptions of Hendrycks & Dietterich (2019); default: all fifteen."""
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5)
    """How strong, in the steps of the published sets."""
    noise_stds: tuple[Positive, ...] = (0.05, 0.1, 0.2)
    """Standard deviations of plain Gaussian noise on images in [0, 1], without rounding to 8 bits."""
    uniform_noise: bool = True
    """Random noise of the attack's norm too, of every eps: what an attack must beat by far."""
    frost: Path | None = None
    """Folder with photographs of frost, of which none come with kapdist; default: drawn ones, not comparable."""
    reference: Path | None = None
    """Another run, examined under the same name: errors are stated relative to its own (mCE)."""
    published: Path | None = None
    """Folder of a set of corrupted images as published, or of ImageNet-A, -R or -V2: predicted beside ours."""
    published_set: PublishedName | None = None
    """Which set that is; default: as its layout tells."""
    published_kinds: Words = ()
    """Corruptions of it, at `severities`; default: those that its mean counts, as far as they are there."""
    published_classes: Literal["by-name", "by-index"] = "by-name"
    """How its classes are the run's: by-index takes the run's in the set's order (WordNet ids, sorted), where they
    have other names. Of CIFAR-10-C and CIFAR-100-C there are only numbers."""

    @field_validator("kinds", "severities", "noise_stds", "published_kinds")
    @classmethod
    def once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each one once")
        return value


CHUNK_ON_CPU, PASS_ON_CPU = 64, 512  # images


class AttackConfig(Section):
    """An attack on a trained model."""

    follows = ATTACK

    name: Name
    """Name of the attack and of its directory; by default the name of the config file."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Attack starts and the choice of images follow from it."""
    model: AttackedModelConfig = AttackedModelConfig()
    data: ImagesConfig = ImagesConfig()
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of a factory's model; default: the run's, or the data's."""
    images: ImageChoice = "random"
    """Which images of the beton: random, by seed; first; list:FILE, a line for each, its id or its file's name;
    robustbench, the 5,000 of ImageNet's validation set that RobustBench evaluates on, from that package or from its
    file (robustbench:FILE)."""
    num_images: Annotated[int, Field(ge=0)] | None = None
    """Images to attack, of a list its first; 0 takes all. Default: all of a list; else 5,000, or all where there
    are fewer."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Norm that bounds the perturbation."""
    eps: Epsilon = ATTACK_EPS["Linf"]
    """Size of the perturbation; a fraction such as 4/255 may be written. A list is tried from the smallest on, and
    what falls is broken at every larger one. Where it is not written: 0.5 with norm L2, as RobustBench has it; 12
    with L1 (Croce and Hein 2021); both are CIFAR-10's."""
    version: Literal["standard", "plus", "rand", "eot-standard", "custom"] = "standard"
    """AutoAttack's list of attacks; custom, the default with `attacks`, takes those. For noisy models eot-standard
    has those of standard on the model averaged over `eot` draws; rand is the library's own, for comparison."""
    attacks: tuple[ListedAttack, ...] = ()
    """The list of attacks of version custom, in order: the library's, three of our own that use no gradient of the
    model (random-noise, hard-label, transfer), fmn, which looks for each image's smallest perturbation, and
    functions of yours, `FILE.py:function` or `package.module:function`, called as function(model, images, labels,
    eps, generator)."""
    random_draws: Natural = 1000
    """Points of the ball that random-noise tries."""
    hard_label_queries: Natural = 10_000
    """Predictions per image that hard-label asks for."""
    fmn_steps: Natural = 200
    """Gradients per image that fmn follows, once for all eps."""
    transfer_from: Surrogates = ()
    """The run whose model transfer attacks, to try on this one what breaks that; or a factory, or a list of either,
    one word or keys each: `{factory: FILE.py:function, weights: FILE}`."""
    gradient_of: str | None = None
    """`FILE.py:function`, called with the model: the module that it returns gives the gradient, while logits stay
    the model's own (BPDA, for models whose own gradient leads nowhere)."""
    noise: Annotated[Literal["off", "fixed", "fresh"], Off] = "off"
    """Mode of the model's noise under attack (activation noise, dropout that draws always, a random member); where
    it is not written, fresh for an average over draws.
    Any but fresh declares the model deterministic; say fresh for a factory's model that is not."""
    eot: Annotated[int, Field(ge=0)] = 0
    """Noise draws averaged inside the model; 0 takes 20 for eot-standard, and else 1, no average."""
    rescore: Annotated[int, Field(ge=0)] = 100
    """Fresh draws that clean and adversarial images are scored under afterwards, if the noise is fresh."""
    images_per_pass: Annotated[int, Field(ge=0)] = 0
    """Rows of the largest batch of draws, the bound on memory; a gradient of more costs a second forward pass. 0
    takes 512 on CPUs, and on a GPU as many as its memory has room for."""
    screen: Annotated[int, Field(ge=0)] = 10
    """Steps of a short APGD before the list, whose finds count; 0 has none. Never with single noisy draws."""
    compact: bool = True
    """Compute an image no more within an attack once it has fallen, and nothing that was computed before
    (deterministic models): the same verdicts."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the passes of the library's attacks, forward and back. Whatever breaks an image there is predicted again
    in fp32, and counts by that alone. Others than fp32 may break another few images; tf32 is for GPUs, bf16 for
    CPUs too that multiply it."""
    fold: bool = True
    """Attack a run's model, if its noise is off, with averages and norms folded into its convolutions: the same
    function to rounding, in half the time. Factories' models are attacked as they are."""
    chunk_size: Annotated[int, Field(ge=0)] = 0
    """Images per chunk: the unit of work, of seeding and of resume. 0 takes 64 on CPUs, and on a GPU as many as its
    memory has room for, a power of two up to 512; a plan that is there keeps its own."""
    num_shards: Natural = 1
    """Local processes of `attack run`, at most one for each chunk; more shards never change the verdict."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per shard, part of the plan; 0 divides this machine's among the shards."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes a GPU if there is one."""
    keep_adversarial: bool = False
    """Keep the adversarial images."""
    timeout_minutes: Positive = 24 * 60.0
    """Longest time that `attack run` waits for its shards."""
    sanity: SanityConfig = SanityConfig()
    """The report of `attack sanity` on this model."""
    corruptions: CorruptionsConfig = CorruptionsConfig()
    """What `attack corruptions` does to the images."""

    @property
    def rows_of_a_chunk(self) -> int:
        """Images per chunk as far as the config says, else those of a CPU's."""
        return self.chunk_size or CHUNK_ON_CPU

    @property
    def rows_of_a_pass(self) -> int:
        return self.images_per_pass or PASS_ON_CPU

    @property
    def list_name(self) -> str | None:
        """What names a list of images: list:FILE, robustbench or robustbench:FILE; None where none does."""
        return None if self.images in ("random", "first") else self.images

    def num_asked(self, available: int | None) -> int | None:
        """Return how many images are attacked of those there are, or more if more are written; None for all."""
        if self.num_images is None and not self.list_name:
            return ATTACKED_IMAGES if available is None else min(ATTACKED_IMAGES, available)
        return self.num_images or available

    @property
    def listed(self) -> tuple[str, ...]:
        """The list of attacks, with a transfer for each surrogate."""
        each = tuple(transfers(self.transfer_from)) if self.transfer_from else ()
        return tuple(name for attack in self.attacks for name in (each if attack == TRANSFER else (attack,)))

    @field_validator("eps")
    @classmethod
    def sizes_have_names(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        names = [size_name(eps) for eps in value] if isinstance(value, tuple) else []
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"sizes that differ in their first six digits, not two of {twice}")
        return value

    @model_validator(mode="after")
    def images_end_at_one(self) -> AttackConfig:
        if self.norm == "Linf" and max(self.eps if isinstance(self.eps, tuple) else (self.eps,)) > 1:
            raise ValueError("eps of at most 1 with Linf (images are in [0, 1]; 8/255 may be written)")
        return self

    @model_validator(mode="after")
    def attacks_go_with_custom(self) -> AttackConfig:
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError("attacks with version custom, and only then")
        if len(set(self.attacks)) != len(self.attacks):
            raise ValueError("each attack once in attacks")
        return self

    @model_validator(mode="after")
    def transfers_come_from_a_run(self) -> AttackConfig:
        if (TRANSFER in self.attacks) != bool(self.transfer_from):
            raise ValueError("transfer_from=RUN with transfer among attacks, and only then")
        if self.transfer_from:
            transfers(self.transfer_from)
        return self

    @model_validator(mode="after")
    def averages_are_of_noise(self) -> AttackConfig:
        if (self.eot > 1 or self.version == "eot-standard") and self.noise != "fresh":
            raise ValueError("noise=fresh for an average over draws (eot, version eot-standard)")
        if self.version == "rand" and self.eot > 1:
            raise ValueError("eot of 0 or 1 with version rand, which has an average of its own")
        return self

    @model_validator(mode="after")
    def precision_is_confirmed(self) -> AttackConfig:
        if self.precision != "fp32" and not (self.noise == "off" and self.compact and self.gradient_of is None):
            raise ValueError("precision of fp32 with noise, with gradient_of or with compact=false")
        return self
