"""What an attack is, fixed before it starts: attacks/<name>/plan.json.

Everything that decides a verdict is in the plan and in its fingerprint; where files lie is in the plan alone, so
that a run directory may be moved between two shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kapdist.config import KapConfig, ModelConfig
from kapdist.config.attack import is_function, known_or_a_function, size_name
from kapdist.config.fields import Interpolation
from kapdist.config.noise_form import check_noise_form
from kapdist.config.surrogates import TRANSFER
from kapdist.errors import InputError
from kapdist.records.planned import AN_ATTACK, read_planned
from kapdist.records.record import Exact
from kapdist.records.sealed import write_json
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir, RunDir

SCREEN = "screen"
OWN_ATTACKS = frozenset({SCREEN, "random-noise", "hard-label", TRANSFER, "fmn"})
GRADIENT_FREE = frozenset({"square", "random-noise", "hard-label", TRANSFER})
Norm = Literal["Linf", "L2", "L1"]
LATER = ("gradient_of", "functions", "precision")
"""Keys of the plan that older ones lack: what has their default has the fingerprint that it always had."""
OF_NO_VERDICT = {"name", "run", "notes", "costs", "images", "chosen", "list_sha256"}  # images_sha256 says which
ROBUSTBENCH_LIST_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
"""Of the file names of the ImageNet validation images that RobustBench evaluates on."""
PACKAGES = ("kapdist", "torch", "numpy", "pyautoattack")


def is_library(attack: str) -> bool:
    """Return whether an attack is AutoAttack's, and neither ours nor a function of the user's."""
    return kind_of(attack) not in OWN_ATTACKS and not is_function(attack)


def asks_no_gradient(attack: str) -> bool:
    """Return whether a model needs no gradient for an attack; what a function of the user's asks is not known."""
    return kind_of(attack) in GRADIENT_FREE or is_function(attack)


def kind_of(attack: str) -> str:
    """Return an attack's name without that of the surrogate that it comes from."""
    return TRANSFER if attack.startswith(f"{TRANSFER}:") else attack


def known(attack: str) -> str:
    known_or_a_function(kind_of(attack))
    return attack


class PlannedModel(Exact):
    """The classifier: a run's own (architecture) or a factory's, and the weights that it must have."""

    factory: str | None
    """As the user wrote it; a file is looked up from the directory that a shard starts in."""
    factory_sha256: str | None
    """Of the file with the factory."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What the factory is called with, by name."""
    mean: tuple[float, float, float] | None = None
    """Of the images' channels, with `std`, as a zoo's network states them; it then normalises inside. None: a
    factory returns what takes images in [0, 1]."""
    std: tuple[float, float, float] | None = None
    architecture: dict[str, dict[str, Any]] | None
    """Sections model and kap of the run's config."""
    weights: Path | None
    """None: the run's model.safetensors, or with a factory the weights that it comes with."""
    weights_sha256: str
    """Of the file, or of the state_dict where the factory brings its own weights."""
    num_classes: int
    folded: bool
    """Averages and norms are folded into the convolutions; the noise is then off for good."""

    def identity(self) -> dict[str, Any]:
        """Return what decides its logits, JSON values; of plans from before a key, nothing under it."""
        values = self.model_dump(mode="json", exclude={"weights"})
        return {key: value for key, value in values.items() if value or key not in ("arguments", "mean", "std")}

    @property
    def function(self) -> dict[str, Any]:
        """What decides which function of the images it is, JSON values: not how it is computed (`folded`), where
        code lies whose sha256 is known, or what its config says of a beginning or of an average that is none.
        """
        values = {key: value for key, value in self.identity().items() if key != "folded"}
        if self.factory and self.factory_sha256:
            values["factory"] = self.factory.rpartition(":")[2]
        return values | {"architecture": self.architecture and said_in_full(self.architecture)}

    @property
    def by_others(self) -> str | None:
        """What returns the network, of the attack's config or of the run's: code that is none of kapdist's."""
        of_the_run: str | None = self.architecture["model"].get("factory") if self.architecture else None
        return self.factory or of_the_run

    def weights_file(self, run: Path) -> Path | None:
        """Return the file with the weights of a model that stands in a run; None where a factory brings its own."""
        return RunDir(run).weights if self.factory is None and self.weights is None else self.weights


def said_in_full(architecture: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return sections model and kap with keys that a plan is too old to say, and without what decides no logit."""
    try:
        model, kap = ModelConfig(**architecture["model"]), KapConfig(**architecture["kap"])
    except (KeyError, ValidationError):
        return architecture  # of another version: what its keys mean is not known
    of_no_logit = {"weights", "new_head", "zero_init_residual"}
    unused = {"layout", "norm_first"} if kap.pool_size == 1 else set()
    return {
        "model": model.model_dump(mode="json", exclude=of_no_logit),
        "kap": kap.model_dump(mode="json", exclude=unused),
    }


class PlannedData(Exact):
    """The images and how they are brought to the model's resolution."""

    path: Path
    fingerprint: str
    resolution: int
    crop: str
    """none, or random-resized, of which a model that is trained sees the centre crop."""
    crop_ratio: float
    interpolation: Interpolation = "area"
    classes: tuple[str, ...] | None = None
    """Names of the model's classes, by which labels are mapped; None: those of the beton are the same."""

    @property
    def shape(self) -> tuple[object, ...]:
        """What decides the pixels that the model sees of a beton's images."""
        return shape_in(self.model_dump())


def shape_in(data: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the same of data as a plan has it, None for what it does not say."""
    whole = (data.get("resolution"), data.get("crop"))
    resized = (data.get("crop_ratio"), data.get("interpolation", "area"))
    return whole if whole[1] == "none" else (*whole, *resized)


class Settings(Exact):
    """The library's own settings for its version, as it sets them; targets are fewer with fewer than 10 classes."""

    iterations: int
    eot: int
    apgd_restarts: int
    apgd_targets: int
    apgd_shrinking_eps: bool
    fab_restarts: int
    fab_targets: int
    square_queries: int


class OwnSettings(Exact):
    """What our own attacks are given; of those that are not in the list, the defaults."""

    random_draws: int = 0
    hard_label_queries: int = 0
    fmn_steps: int = 0
    surrogate: PlannedModel | None = None
    """The only one that transfers come from."""
    surrogates: dict[str, PlannedModel] = Field(default_factory=dict)
    """Of several, by the attack's name."""

    @property
    def transfers(self) -> dict[str, PlannedModel]:
        """{attack: the model that it comes from}."""
        return {TRANSFER: self.surrogate} if self.surrogate else self.surrogates

    def identity(self) -> dict[str, Any]:
        """Return the settings as JSON values, without places."""
        values = self.model_dump(mode="json", exclude={"surrogate", "surrogates"})
        if not self.fmn_steps:  # unknown to plans that are older than it
            del values["fmn_steps"]
        values["surrogate"] = self.surrogate.identity() if self.surrogate else None
        if self.surrogates:
            values["surrogates"] = {name: model.identity() for name, model in self.surrogates.items()}
        return values


class Stage(Exact):
    """One attack at one eps; its name is that of its columns in the records."""

    name: str
    attack: str
    eps: float


class AttackPlan(Exact):
    """One attack on one model, to the last detail that decides a verdict."""

    format: Literal[2] = 2
    name: str
    run: str
    model: PlannedModel
    data: PlannedData
    norm: Norm
    eps: float
    """The largest, which the accuracy is stated for."""
    smaller_eps: tuple[float, ...] = ()
    """Ascending; tried first, and what falls there is not attacked again: it counts as broken from there on."""
    version: Literal["standard", "plus", "rand", "eot-standard", "custom"]
    attacks: tuple[Annotated[str, AfterValidator(known)], ...]
    settings: Settings
    own_settings: OwnSettings = OwnSettings()
    gradient_of: str | None = None
    """The user's function whose module gives the model its gradient."""
    functions: dict[str, str | None] = Field(default_factory=dict)
    """Every function of the user's, attacks and `gradient_of`, and the sha256 of its file; None: it has none."""
    noise: Literal["off", "fixed", "fresh"]
    """fresh: the model is noisy. Any other says that it is deterministic."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the passes of the library's attacks; what decides a verdict is fp32."""
    screen: int = 0
    """Steps of the short attack that goes first; 0: none."""
    compact: bool = False
    """What has fallen, or was asked before, is not computed again within an attack (deterministic models)."""
    eot: int = 1
    """Draws that are averaged inside the model; 1: none are."""
    draws_together: bool = True
    """Draws may share a batch. False: the model's noise is one for the whole batch."""
    images_per_pass: int = 512
    """Rows of the largest batch of averaged or scored draws: their grouping decides which noise each row gets."""
    rescore: int = 0
    """Fresh draws that stored images are scored under; 0: none are."""
    seed: int
    chunk_size: int = Field(ge=1)
    threads: int = Field(ge=1)
    """CPU threads per shard: the order of sums, and so the last bits, depend on it."""
    device: str
    """cpu, or the name of the GPU: another kind may round otherwise."""
    keep_adversarial: bool
    packages: dict[str, str | None]
    num_images: int
    images_sha256: str
    chosen: str = "random"
    """How the images were chosen: random, by seed; first; or by a list, as the user named it."""
    list_sha256: str | None = None
    """Of the file with that list."""
    notes: tuple[str, ...]
    """What a reader of the result should know about this plan."""
    costs: tuple[float, ...] = ()
    """Expected work of each chunk, in any unit; shards are balanced by it. Empty: as many as there are images."""
    images: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def every_chunk_has_its_cost(self) -> AttackPlan:
        if self.costs and len(self.costs) != self.num_chunks:
            raise ValueError(f"{len(self.costs)} costs for {self.num_chunks} chunks")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the verdicts, JSON values: no names, no places."""
        values = self.model_dump(mode="json", exclude=OF_NO_VERDICT)
        values["model"] = self.model.identity()
        del values["data"]["path"]
        if self.data.classes is None:
            del values["data"]["classes"]
        if self.data.interpolation == "area":
            del values["data"]["interpolation"]
        del values["own_settings"]
        if self.own_settings != OwnSettings():
            values["own_settings"] = self.own_settings.identity()
        for key in LATER:
            if values[key] == type(self).model_fields[key].get_default(call_default_factory=True):
                del values[key]
        return values

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON values, without the list of images."""
        derived = {"fingerprint": self.fingerprint, "num_chunks": self.num_chunks}
        return self.model_dump(mode="json", exclude={"images", "costs"}) | derived

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    @property
    def num_chunks(self) -> int:
        return -(-len(self.images) // self.chunk_size)

    def chunk_images(self, chunk: int) -> tuple[int, ...]:
        """Return the ids of the images of a chunk, ascending."""
        return self.images[chunk * self.chunk_size : (chunk + 1) * self.chunk_size]

    @property
    def passes_gradients(self) -> bool:
        return not all(map(asks_no_gradient, self.attacks))

    @property
    def deterministic(self) -> bool:
        return self.noise != "fresh"

    @property
    def sweep(self) -> tuple[float, ...]:
        """All eps, ascending."""
        return (*self.smaller_eps, self.eps)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is run, in order: the screen and the list of attacks, at each eps."""
        attacks = (SCREEN, *self.attacks) if self.screen else self.attacks
        return tuple(
            Stage(name=f"{attack}@{size_name(eps)}" if self.smaller_eps else attack, attack=attack, eps=eps)
            for eps in self.sweep
            for attack in attacks
        )


def run_of(attack: AttackDir) -> Path:
    """Return the run directory that an attack directory lies in: RUN/attacks/NAME."""
    return attack.root.resolve().parent.parent


def read_plan(attack: AttackDir) -> AttackPlan:
    """Read the plan of an attack directory.

    Raises:
        InputError: there is none, it is not one, or a model of it had its noise before its average.
    """
    plan = read_planned(AttackPlan, attack, AN_ATTACK)
    check_models(plan, attack.plan)
    if fingerprint(list(plan.images)) != plan.images_sha256:
        raise InputError(attack.plan, f"images with sha256 {plan.images_sha256[:12]}", "another list")
    return plan


def check_models(plan: AttackPlan, path: Path) -> None:
    """Raise InputError for a model that today's code would build another from."""
    for model in (plan.model, *plan.own_settings.transfers.values()):
        if model.architecture is not None:
            check_noise_form(path, model.architecture.get("kap"))


def write_plan(attack: AttackDir, plan: AttackPlan) -> None:
    """Write the plan, or find it there already; chunks that were made under it are kept.

    Raises:
        InputError: the directory has a plan that differs in what decides a verdict.
    """
    if attack.plan.exists():
        difference = first_difference(read_plan(attack).identity(), plan.identity())
        if difference:
            key, before, now = difference
            expected = f"{key} = {before} as this attack was planned (or another name=)"
            raise InputError(attack.root, expected, now)
    write_json(attack.plan, plan.model_dump(mode="json"))


def first_difference(before: Any, now: Any, key: str = "") -> tuple[str, str, str] | None:
    """Return (dotted key, value before, value now) of the first field that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            found = first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if before == now else (key, repr(before), repr(now))
