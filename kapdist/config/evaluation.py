"""Evaluation of a trained run or of another model: the keys of `kapdist evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kapdist.config.attack import AttackedModelConfig
from kapdist.config.defaults import EVALUATION
from kapdist.config.fields import Name, Natural, Off, Positive, Section
from kapdist.config.images import ImagesConfig


class EvaluationConfig(Section):
    """Owner: train/evaluate_run.py. What is not said is as in the run's own config."""

    follows = EVALUATION

    name: Name = "evaluation"
    """Name of the result: RUN/evaluations/<name>.json."""
    model: AttackedModelConfig = AttackedModelConfig()
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of a factory's model; default: the data's."""
    weights: Literal["final", "best"] = "final"
    """Of a run, the weights at the end of the training, or those of its best evaluation."""
    data: ImagesConfig = ImagesConfig()
    flip: bool = False
    """Test-time flip: the mean of the logits of an image and of its mirror image."""
    noise: Annotated[Literal["off", "fresh"], Off] = "off"
    """The model's noise (activation noise, dropout that draws always, a random member); fresh, where it is not
    written, for more draws than one."""
    draws: Natural = 1
    """Draws of fresh noise whose probabilities are averaged."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fresh noise follows from it, from the batch and from the number of the draw."""
    batch_size: Natural = 500
    """Images per batch. Batches are cut, then dealt to the ranks, so they are the same on any number of ranks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes a GPU if there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per rank; 0 divides the CPUs that this process may use among the ranks of the node."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Decoding threads per rank; 0 divides those CPUs likewise."""
    timeout_minutes: Positive = 10.0
    """Longest wait of one rank for the others."""

    @model_validator(mode="after")
    def other_models_are_factories(self) -> EvaluationConfig:
        if self.model.factory is None and (self.model.weights or self.num_classes):
            raise ValueError("model.weights and num_classes with model.factory only")
        return self

    @model_validator(mode="after")
    def draws_are_of_noise(self) -> EvaluationConfig:
        if self.draws > 1 and self.noise == "off":
            raise ValueError("draws above 1 with noise fresh only")
        return self


OF_A_FACTORY = {"model.factory", "model.arguments", "num_classes"}
# What decides no number of the result, but for rounding; a rule for classes only refuses, or not, and of the images
# the result has the fingerprint.
MAY_DIFFER = {
    "name",
    "model.weights",
    "data.beton",
    "data.classes",
    "device",
    "threads",
    "workers",
    "timeout_minutes",
}
# What ranks may be told otherwise, host by host: the images and the weights that they find are compared.
OF_A_HOST = {"model.weights", "data.beton", "device", "threads", "workers", "timeout_minutes"}
