"""The optimizer and its learning rate: the section `optim` of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kapdist.config.defaults import WARMUP_EPOCHS
from kapdist.config.fields import NonNegative, Positive, Probability, Section


class OptimConfig(Section):
    """Owner: train/optim.py."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, with `momentum` and `nesterov`; adamw, with `betas` and `eps` (Loshchilov and Hutter 2019). Keys of the
    other one have no effect."""
    lr: Positive = 0.5
    """Peak learning rate, for a global batch of `lr_batch_size`; of adamw, where it is not written, 1e-3."""
    lr_batch_size: Annotated[int, Field(ge=0)] = 0
    """Global batch size that lr was found for; the plan scales lr in proportion to train.batch_size (Goyal et al.
    2017). 0 takes lr as it stands."""
    momentum: Probability = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of the momentum (Sutskever et al. 2013)."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Of adamw: decay of its averages of the gradient and of the gradient's square."""
    eps: Positive = 1e-8
    """Of adamw: what is added to the root of the second average."""
    weight_decay: NonNegative = 5e-5
    """On weights of convolutions and linear layers; sgd adds it to the gradient, adamw takes lr x weight_decay of
    a weight away. Of adamw, where it is not written, 0.01."""
    decay_norms: bool = False
    """Weight decay on norms and biases too: on every parameter."""
    warmup_epochs: NonNegative = WARMUP_EPOCHS
    """Epochs from zero to the peak, linear by step; where it is not written, at most half of a training of one."""
    schedule: Literal["linear", "cosine", "steps"] = "linear"
    """The way from the peak: linear or a cosine down to zero; steps, times `decay_factor` at every milestone. With
    milestones, steps where it is not written."""
    milestones: tuple[Positive, ...] | None = None
    """Of steps: the epochs at which lr goes down, ascending; an empty list keeps the peak. Default: half and three
    quarters of the training (He et al. 2016)."""
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of steps: what lr is multiplied by at a milestone."""
    label_smoothing: Probability = 0.1
    """Label smoothing of the training loss."""
    clip_grad_norm: NonNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: Probability = 0.0
    """Decay of the moving average of weights that is evaluated and exported; 0 keeps none."""

    @model_validator(mode="after")
    def milestones_are_of_steps(self) -> OptimConfig:
        if self.milestones and self.schedule != "steps":
            raise ValueError("milestones with schedule steps only")
        if self.milestones and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones that ascend, each once")
        return self
