"""Robust validation: the section `robust` of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kapdist.config.adversarial import Size
from kapdist.config.fields import Natural, Off, Section


class RobustConfig(Section):
    """Owner: train/robust.py. A short PGD on some validation images while the model is trained."""

    every_epochs: Annotated[int, Field(ge=0)] = 0
    """Attack after every so many epochs, and at the end; 0 never. A multiple of train.evaluate_every_epochs; where
    it is not written and train.best is robust, the same."""
    num_images: Natural = 512
    """Images of data.validation that are attacked each time, chosen by seed; all where there are fewer."""
    batch_size: Natural = 64
    """Images that a rank attacks at a time."""
    norm: Literal["Linf", "L2"] | None = None
    """Norm that bounds the perturbation; default: that of `adversarial`."""
    eps: Size = None
    """Size of the perturbation; default: that of `adversarial`, or where the norm is another 4/255 or 3."""
    steps: Natural = 10
    """Steps of projected gradient ascent, from a start uniform in the ball."""
    step_size: Size = None
    """Way of one step; default: 2.5 eps / steps."""
    noise: Annotated[Literal["off", "fresh"], Off] = "off"
    """The model's activation noise: off; or fresh, where every pass averages probabilities over its own draws."""
    draws: Natural = 1
    """Draws of noise fresh in a pass."""

    @model_validator(mode="after")
    def draws_are_of_noise(self) -> RobustConfig:
        if self.draws > 1 and self.noise == "off":
            raise ValueError("draws with noise fresh only")
        return self
