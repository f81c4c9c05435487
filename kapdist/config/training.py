"""Every knob, once: frozen models, one section per owner, one line of doc per field.

defaults < YAML file < ``section.key=value``. Nothing mutates a config; whatever follows from it lives in plan/.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from kapdist.config.adversarial import AdversarialConfig
from kapdist.config.defaults import (
    EPOCHS,
    RAMP_MULTIPLE,
    RESOLUTION,
    STALL_MINUTES,
    TIMEOUT_MINUTES,
    TRAINING,
)
from kapdist.config.fields import (
    ClassRule,
    Interpolation,
    Name,
    Natural,
    NonNegative,
    Patterns,
    Positive,
    Section,
    Side,
)
from kapdist.config.model import ModelConfig
from kapdist.config.optim import OptimConfig
from kapdist.config.robust import RobustConfig
from kapdist.errors import InputError


class DataConfig(Section):
    """Owner: data/."""

    train: Path
    """The beton to train on (kapdist data write)."""
    validation: Path
    """The beton to evaluate on; attacks take their images from it too."""
    classes: ClassRule = "exact"
    """Another beton's classes: exact, those of `train`, name by name; by-name, some of those, whose labels are
    mapped."""
    resolution: Side = RESOLUTION
    """Side of the square images that the model sees, pixels; in training too unless there is a ramp."""
    min_resolution: Side | None = None
    """Side of training images until start_ramp; with max_resolution, a ramp of multiples of 32, by epoch. Where one
    of the two is not written, it is `resolution` or the other."""
    max_resolution: Side | None = None
    """Side of training images from end_ramp on."""
    start_ramp: NonNegative = 0.0
    """Epoch until which training images have min_resolution."""
    end_ramp: NonNegative = 0.0
    """Epoch from which training images have max_resolution; between them it is interpolated. Where it is not
    written, start_ramp."""
    crop: Literal["none", "random-resized"] = "none"
    """Training crop: none needs images of exactly `resolution`; random-resized, the default with a ramp, takes
    images of any size."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 224 / 256
    """Evaluation with random-resized training: the share of the shorter side that the centre crop keeps."""
    interpolation: Interpolation = "area"
    """How that crop is resized: area, as FFCV does; or Pillow's bilinear or bicubic, to the last bit, in the order
    of torchvision: the shorter side to resolution / crop_ratio, then the centre. Training always takes area."""
    flip: bool = False
    """Mirror training images left to right with probability 1/2."""
    translate: Annotated[int, Field(ge=0, le=64)] = 0
    """Shift training images by up to this many pixels in both directions, black outside."""
    cutout: Annotated[int, Field(ge=0, le=2048)] = 0
    """Blacken a square of this side, pixels, at a random place of training images; 0 does not (DeVries 2017)."""
    rand_augment: Annotated[int, Field(ge=0, le=16)] = 0
    """Operations of RandAugment (Cubuk 2020) on each training image, after flip and translation; 0 does none."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong these operations are, on torchvision's scale; 30 is the strongest."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a random rectangle of a training image becomes noise, last of all (Zhong 2020)."""
    backend: Literal["auto", "ffcv", "torch"] = "auto"
    """What decodes: ffcv, or simplejpeg in threads, called torch (the same crops, somewhat slower); auto takes ffcv
    where it can be imported."""
    decode: Literal["full", "reduced"] = "full"
    """Training JPEGs: full decodes all pixels, as FFCV does; reduced, which is faster, decodes at 1/2, 1/4 or 1/8
    where the crop still has `resolution` pixels each way. Evaluation and attacks always take full."""
    stage: Path | None = None
    """Folder on a disk of each node, such as $SLURM_TMPDIR: both betons are copied there once, and read there."""
    on_device: bool = False
    """Keep all images decoded on the device and crop and augment them there, to the same pixels: for data sets that
    fit there, training's and validation's together; on the CPU in each rank's memory."""
    order: Literal["auto", "random", "quasi-random"] = "random"
    """Order of an epoch: random over all images, or page by page, for a beton larger than memory; auto takes random
    where the beton fits into the node's memory, and a run keeps to what it began with. With cache process:
    quasi-random where it is not written."""
    page_images: Natural = 2048
    """Consecutive images that quasi-random order reads together; it has eight such pages open at a time."""
    cache: Literal["auto", "page", "process"] = "page"
    """Who keeps the beton's bytes: the operating system (page), or each rank, which reads open pages whole and
    ahead (process, for slow file systems; with quasi-random order); auto decides by the same sizes."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Decoding threads per rank; 0 divides the CPUs that this process may use among the ranks of the node, and on a
    GPU leaves one of a rank's to the thread that launches its kernels."""
    batches_ahead: Natural = 3
    """Batches that are decoded ahead of the step that uses them."""
    timeout_seconds: Positive = 300.0
    """Longest wait for one batch before the loader gives up (the first one includes compilation)."""

    @model_validator(mode="after")
    def ramp_goes_up(self) -> DataConfig:
        low, high = self.min_resolution, self.max_resolution
        if (low is None) != (high is None):
            raise ValueError("min_resolution and max_resolution together")
        if low is None or high is None:
            return self
        if self.crop == "none":
            raise ValueError("min_resolution with crop random-resized only: nothing else resizes")
        if low % RAMP_MULTIPLE or high % RAMP_MULTIPLE or low > high:
            raise ValueError(f"min_resolution at most max_resolution, both multiples of {RAMP_MULTIPLE}")
        if self.start_ramp > self.end_ramp:
            raise ValueError("start_ramp at most end_ramp")
        return self

    @model_validator(mode="after")
    def on_device_can_do_it(self) -> DataConfig:
        if self.on_device and self.decode == "reduced":
            raise ValueError("on_device with decode full only: images are decoded once, before they are cropped")
        if self.on_device and self.cache == "process":
            raise ValueError("on_device with cache page or auto only: it keeps the whole beton")
        return self

    @model_validator(mode="after")
    def cache_goes_with_order(self) -> DataConfig:
        if self.cache == "process" and self.order == "random":
            raise ValueError("cache process with order quasi-random only: in random order it keeps the whole beton")
        return self


class KapConfig(Section):
    """Owner: kap/."""

    pool_size: Natural = 1
    """K, the kernels that are averaged (odd); on a sheet the window is K x K. 1 is no average."""
    layout: Literal["sheet", "line"] = "sheet"
    """How kernels neighbour each other: row by row on a sheet, the paper's authors' own; in one line, ours."""
    noise_std: NonNegative = 0.0
    """Standard deviation of the activation noise, white, added after the average, in training."""
    where: Patterns | None = None
    """Shell patterns of convolutions' names, such as `layer1.*`; one after a "!" leaves out. Default: all but those
    that are linear layers by another name."""
    norm_first: bool = False
    """Where kernels are averaged, a batch norm before the average too: conv, norm, mean, noise, norm, as in the
    authors' networks for ImageNet and TinyImageNet."""

    @field_validator("pool_size")
    @classmethod
    def odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("an odd number")
        return value


class TrainConfig(Section):
    """Owner: train/loop.py."""

    epochs: Natural = EPOCHS
    """Passes over the training set; where it is not written, as many at least as warm-ups and the ramp take."""
    batch_size: Natural | None = None
    """Global batch size: images per optimizer step over all ranks. Default: 1,024, or all images where there are
    fewer, or two for every part of a rank's share where that is more; a run keeps to what it began with."""
    accumulation_steps: Natural = 1
    """Parts that a rank splits its share of a batch into."""
    input_noise_std: NonNegative = 0.0
    """Standard deviation of Gaussian noise on training images in [0, 1]."""
    mixup_alpha: NonNegative = 0.0
    """Parameter of Mixup's beta distribution; 0 does not mix."""
    cutmix_alpha: NonNegative = 0.0
    """Parameter of CutMix's beta distribution; 0 does not cut. With both, each step takes one by chance."""
    evaluate_every_epochs: Natural = 1
    """Evaluate after every so many epochs, and at the end."""
    best: Literal["clean", "robust"] = "clean"
    """What the best weights are best by: accuracy on all validation images, or that of robust validation."""
    eval_batch_size: Natural = 500
    """Images per rank and evaluation batch."""
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0
    """Checkpoint after every so many steps; 0 leaves it to the clock. Where it is not written and the clock is off,
    1,000."""
    checkpoint_every_minutes: NonNegative = 10.0
    """Checkpoint after so many minutes; 0 leaves it to the steps."""
    stall_minutes: Positive = STALL_MINUTES
    """Longest time without progress of any rank before the attempt ends and names the rank; less than
    engine.timeout_minutes, or the others would end first, of having waited for it. Where one of the two is not
    written, it is 1.5 times or 2/3 of the other if the default would not do."""
    keep_checkpoints: Natural = 2
    """Newest checkpoints kept."""
    log_every_steps: Natural = 20
    """Steps between two lines of metrics."""
    profile_steps: tuple[Natural, ...] = ()
    """Steps, counted from 1, whose every operation and kernel torch's profiler writes to the run's `profile/`."""
    wandb_project: str | None = None
    """Weights & Biases project that is told of the run as well (needs the extra `wandb`)."""
    wandb_mode: Literal["online", "offline"] | None = None
    """Offline keeps it in the run's `wandb/`, for `wandb sync`; default: as WANDB_MODE says, else online."""
    mlflow_experiment: str | None = None
    """MLflow experiment that is told of the run as well (needs the extra `mlflow`)."""
    mlflow_uri: str | None = None
    """Its server, or `sqlite:///FILE`, or a folder; default: MLFLOW_TRACKING_URI, else `mlruns` in runs_dir."""
    tracker_seconds: Positive = 60.0
    """Longest wait for either of them, at the end of a training or of what is asked of its model; no step waits."""


class EngineConfig(Section):
    """Owner: engine/."""

    name: Literal["ddp", "deepspeed"] = "ddp"
    """Engine that runs the step; with zero_stage, deepspeed where it is not written."""
    zero_stage: Annotated[int, Field(ge=0, le=2)] = 0
    """What DeepSpeed divides among the ranks (ZeRO): 0 nothing, 1 the optimizer's state, 2 gradients too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes a GPU if there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision; weights stay fp32."""
    tf32: bool = True
    """fp32 on GPUs: convolutions and products of matrices in TensorFloat-32; never in evaluations and attacks."""
    deterministic: bool = False
    """On GPUs: the same bits every time, which costs speed. CPUs compute so in any case."""
    channels_last: bool = True
    """Keep activations and weights in channels-last order."""
    sync_batch_norm: bool = False
    """Norms take the statistics of a batch over all ranks, not over each rank's own images: a message more for each
    norm, forward and backward."""
    compile: bool = False
    """torch.compile the model."""
    graphs: bool = False
    """On GPUs, with name ddp: replay the steps of a training as CUDA graphs, one for each size of a batch and side
    of its images, so that no kernel waits for its launch. Takes memory for a second set of activations."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per rank; 0 divides the CPUs that this process may use among the ranks of the node."""
    timeout_minutes: Positive = TIMEOUT_MINUTES
    """Longest wait of one rank for the others; more than train.stall_minutes."""

    @model_validator(mode="after")
    def zero_goes_with_deepspeed(self) -> EngineConfig:
        if self.zero_stage and self.name != "deepspeed":
            raise ValueError("zero_stage above 0 with name deepspeed only")
        if self.graphs and self.name != "ddp":
            raise ValueError("graphs with name ddp only: DeepSpeed asks its GPU for numbers within a step")
        if self.graphs and self.device == "cpu":
            raise ValueError("graphs on GPUs only")
        return self


class Config(Section):
    """A training run."""

    follows = TRAINING

    name: Name
    """Name of the run and of its directory; by default the name of the config file."""
    runs_dir: Path = Path("runs")
    """Where run directories are."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    kap: KapConfig = KapConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    robust: RobustConfig = RobustConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def has_a_clock_for_checkpoints(self) -> Config:
        if not self.train.checkpoint_every_steps and not self.train.checkpoint_every_minutes:
            raise ValueError("train.checkpoint_every_steps or train.checkpoint_every_minutes above 0")
        return self

    @model_validator(mode="after")
    def robust_validation_goes_with_evaluation(self) -> Config:
        every, clean = self.robust.every_epochs, self.train.evaluate_every_epochs
        if every % clean:
            raise ValueError(f"robust.every_epochs a multiple of train.evaluate_every_epochs = {clean}")
        if self.train.best == "robust" and not every:
            raise ValueError("train.best robust with robust.every_epochs above 0 only")
        return self

    @model_validator(mode="after")
    def graphs_hold_the_attack(self) -> Config:
        attack = self.adversarial
        if self.engine.graphs and attack.mode == "free":
            raise ValueError("engine.graphs without adversarial.mode free: it reuses the gradient between updates")
        if self.engine.graphs and attack.mode != "off" and attack.noise == "fixed":
            raise ValueError("engine.graphs without adversarial.noise fixed, which is drawn on the host")
        return self

    @model_validator(mode="after")
    def mart_has_one_label(self) -> Config:
        if self.adversarial.mode == "mart" and (self.train.mixup_alpha or self.train.cutmix_alpha):
            raise ValueError(
                "adversarial.mode mart without train.mixup_alpha and train.cutmix_alpha: one label each"
            )
        return self


def check_limits(config: Config) -> None:
    """Refuse limits under which a rank that stops would not be named.

    Not part of the config's own checks: configs of finished runs are read, whatever limits they were trained under.
    """
    stall, timeout = config.train.stall_minutes, config.engine.timeout_minutes
    if stall >= timeout:
        expected = f"less than engine.timeout_minutes = {timeout:g}, so that the rank that stops is named first"
        raise InputError("train.stall_minutes", expected, f"{stall:g}")


# What may differ when a run is continued: it decides how fast the run goes and what it says, not what it learns
# (the engines agree to rounding, like numbers of ranks, and read one another's checkpoints).
MAY_CHANGE = (
    "runs_dir",
    "data.backend",
    "data.cache",
    "data.workers",
    "data.on_device",
    "data.stage",
    "data.batches_ahead",
    "data.timeout_seconds",
    "engine.name",
    "engine.zero_stage",
    "engine.graphs",
    "engine.threads",
    "engine.timeout_minutes",
    "robust.every_epochs",
    "train.evaluate_every_epochs",
    "train.eval_batch_size",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.stall_minutes",
    "train.log_every_steps",
    "train.profile_steps",
    "train.wandb_project",
    "train.wandb_mode",
    "train.mlflow_experiment",
    "train.mlflow_uri",
    "train.tracker_seconds",
)

# A beton may lie elsewhere when a run is continued: its images' fingerprint is in plan.json by this name.
MAY_MOVE = {"data.train": "data", "data.validation": "validation"}
# Where these are not written when a run is continued, it keeps to what plan.json says by this name.
KEPT = {"train.batch_size": "batch_size"}


AnySection = TypeVar("AnySection", bound=Section)


def flatten(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a config, JSON values, sections opened."""
    flat: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = section.model_dump(mode="json", include={key})[key]
    return flat


@cache
def dotted_keys(model: type[Section], prefix: str = "") -> tuple[str, ...]:
    """Return every dotted key of a config class, sections included."""
    keys: list[str] = []
    for key, field in model.model_fields.items():
        keys.append(prefix + key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += dotted_keys(field.annotation, f"{prefix}{key}.")
    return tuple(keys)
