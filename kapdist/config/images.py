"""The images that a trained model is shown, and how they come to its size: the section `data` of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kapdist.config.fields import ClassRule, Interpolation, Section, Side

SHAPE = {"resolution", "crop", "crop_ratio", "interpolation"}
CENTER = "random-resized"  # what a training calls the crop whose evaluation takes the centre


class ImagesConfig(Section):
    """Owner: attack/images.py, and train/evaluate_run.py of an evaluation. `data=FILE.beton` means data.beton."""

    stands_for: ClassVar[str] = "beton"

    beton: Path | None = None
    """Beton with the images; default: the run's validation beton."""
    classes: ClassRule | None = None
    """How its classes are the run's (exact, by-name); default: the run's data.classes."""
    resolution: Side | None = None
    """Side of the square images that the model sees, pixels. Default of this and of the next three: the run's, else
    what a model from a zoo states, else the side of the beton's images if all are squares of one size."""
    crop: Literal["none", "center"] | None = None
    """none takes images of exactly `resolution` as they are; center, the default where another resolution or a
    crop_ratio is written, their middle, resized."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the shorter side that the centre crop keeps."""
    interpolation: Interpolation | None = None
    """How it is resized: area, or Pillow's bilinear or bicubic, to the last bit, first the shorter side to
    resolution / crop_ratio, then its centre, as torchvision and timm do."""

    @model_validator(mode="after")
    def what_is_not_cropped_has_no_ratio(self) -> ImagesConfig:
        if self.crop == "none" and (self.crop_ratio is not None or self.interpolation not in (None, "area")):
            raise ValueError("crop_ratio and interpolation with crop center only")
        return self

    def over(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return resolution, crop, crop_ratio and interpolation, in DataConfig's words, as far as they are known.

        Args:
            base: those that hold where nothing is written, in the same words.
        """
        written = self.model_dump(include=SHAPE, exclude_none=True)
        resized = written.get("resolution", base.get("resolution")) != base.get("resolution")
        if "crop" not in written and ("crop_ratio" in written or resized):
            written["crop"] = "center"
        if written.get("crop") == "center":
            written["crop"] = CENTER
        shape = {"crop": "none", "interpolation": "area", **base, **written}
        return shape if shape["crop"] != "none" else shape | {"interpolation": "area"}  # nothing is resized
