"""Adversarial training: the section `adversarial` of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kapdist.config.fields import Fractional, Natural, NonNegative, Off, Positive, Section

Size = Annotated[Positive | None, Fractional]

# What the modes differ in; every other key goes with all of them.
TAKEN_BY = {
    "steps": ("pgd",),
    "replays": ("free",),
    "statistics": ("pgd", "fast"),
    "noise": ("pgd", "fast"),
}


class AdversarialConfig(Section):
    """Owner: train/adversarial.py, train/pgd.py. With mode off no other key has an effect."""

    mode: Annotated[Literal["off", "pgd", "fast", "free"], Off] = "off"
    """pgd: images after some steps of projected gradient ascent (Madry 2018); fast: after one step from a random
    start (Wong 2020); free: every batch several times, the gradient of an update reused for the images (Shafahi
    2019)."""
    norm: Literal["Linf", "L2"] = "Linf"
    """Norm that bounds the perturbation of an image."""
    eps: Size = None
    """Size of the perturbation, of images in [0, 1]; a fraction such as 8/255 may be written. Default: 4/255 for
    Linf, 3 for L2."""
    eps_warmup_epochs: NonNegative = 0.0
    """Epochs in which the size grows from zero, linear by step; the step size grows with it."""
    steps: Natural | None = None
    """Steps of pgd; default: 7. Fast has one, free has one per replay."""
    step_size: Size = None
    """Way of one step. Default, as published: 2.5 eps / steps for pgd, 1.25 eps for fast, eps for free."""
    replays: Natural | None = None
    """How often free takes a batch, one update of the weights each; default: 4."""
    random_start: bool = True
    """Start uniformly within the ball, from (seed, epoch, image); else from the image itself."""
    clean_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the clean images: loss = clean_share x clean + (1 - clean_share) x adversarial (Goodfellow 2015).
    Above 0 both go through the model in one batch, so that the norms see both (Kurakin 2017)."""
    statistics: Literal["eval", "train"] | None = None
    """Norms and dropout while pgd and fast attack: eval, running statistics and no dropout; train, the batch's own
    statistics and dropout. Running statistics stay as they are in both. Default: eval. Free attacks in training."""
    noise: Annotated[Literal["fresh", "fixed", "off"] | None, Off] = None
    """The model's noise while pgd and fast attack: fresh, drawn at every pass; fixed, one draw for each
    layer and step of the training; off. Default: fresh. Free attacks in training, where it is fresh."""

    @model_validator(mode="after")
    def keys_go_with_modes(self) -> AdversarialConfig:
        for key, modes in TAKEN_BY.items():
            if self.mode not in ("off", *modes) and getattr(self, key) is not None:
                raise ValueError(f"{key} with mode {' or '.join(modes)} only")
        return self

    @model_validator(mode="after")
    def images_end_at_one(self) -> AdversarialConfig:
        if self.norm == "Linf" and self.eps is not None and self.eps > 1:
            raise ValueError("eps of at most 1 with Linf (images are in [0, 1]; 8/255 may be written)")
        return self
