"""What a model takes images for: the only way from logits to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kapdist.attack.kept import Kept
from kapdist.errors import InputError
from kapdist.models.shown import where_not_finite
from kapdist.records.attack_plan import AttackPlan


def predict(model: nn.Module, images: Tensor, plan: AttackPlan, chunk: int, chosen: Tensor | None = None) -> Tensor:
    """Return the classes, (batch,), of the images of a chunk, or of those `chosen`, (images of the chunk,) bool."""
    return finite_logits(model, images, plan, chunk, chosen).argmax(1)


def finite_logits(
    model: nn.Module, images: Tensor, plan: AttackPlan, chunk: int, chosen: Tensor | None = None
) -> Tensor:
    logits: Tensor = model(images)
    if not logits.isfinite().all():
        ids = plan.chunk_images(chunk)
        rows = range(len(ids)) if chosen is None else chosen.nonzero().squeeze(1).tolist()
        raise not_finite(place_of(plan), logits, images, [f"image {ids[row]}" for row in rows])
    return logits


def not_finite(place: str, logits: Tensor, images: Tensor, names: Sequence[str]) -> InputError:
    """Return what to say of logits, (batch, classes), that are not finite on images of these names."""
    return InputError(place, "finite logits on every image", where_not_finite(logits, images, names))


def place_of(plan: AttackPlan) -> str:
    return f"model.factory={plan.model.factory}" if plan.model.factory else plan.run


def check_state_kept(before: Kept, plan: AttackPlan) -> None:
    """Raise InputError if the model is another than before: no verdict would be one on the model of the plan."""
    if changed := before.changed_tensor():
        expected = "a model whose parameters and buffers stay as they are under attack"
        raise InputError(place_of(plan), expected, f"{changed} changed")
