"""What is no classifier that an attack could judge is refused before anything runs, in one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kapdist.attack.counted import CountedModel, RandomStream
from kapdist.attack.watch import turned
from kapdist.errors import InputError
from kapdist.models.factory import said
from kapdist.models.shown import check_images_kept, check_logits, shown_images

BATCH_ROUNDING = 1e-3  # of the largest logit: what other sizes of a batch may round, cuDNN's and folded models' too
FEWEST_COPIES, MOST_COPIES, CALLS = 6, 64, 16
# Times the variance among copies: by chance not one in a million of normal noise, and rare events hardly. Of what a
# batch shares it leaves a tenth of what each row draws, as 64 times the one stands against the other.
MOST_SHARED = 4.0
PASSES = 12
MOST_APART = 50.0  # times the variance of such means: of one number that a batch shares not one in 100,000
ROW_ROUNDING = 1e-5  # of the largest logit


def check_classifier(
    model: nn.Module, place: object, num_classes: int, resolution: int, gradients: bool
) -> torch.dtype:
    """Show the model a few images, (6, 3, resolution, resolution) in [0, 1], and refuse what cannot be attacked.

    Returns:
        The type of its logits.

    Raises:
        InputError: it fails or changes its images, or its output is not (batch, num_classes) finite logits, is a
            probability, or does not depend differentiably on the images although an attack follows gradients.
    """
    check_images_kept(model, place, resolution)
    images = shown_images(model, resolution)
    try:
        with torch.random.fork_rng(devices=[]):
            logits = model(images.requires_grad_(gradients))
    except Exception as error:
        expected = f"logits of images {tuple(images.shape)} in [0, 1] (or others: data.resolution=N)"
        raise InputError(place, expected, said(error)) from error
    check_logits(logits, place, images.detach(), num_classes)
    if gradients and not logits.requires_grad:
        found = "logits without a gradient (a detached branch? custom attacks=[square] needs none)"
        raise InputError(place, "logits that depend differentiably on the images", found)
    check_one_image(model, place, images.detach()[:1], num_classes)
    dtype: torch.dtype = logits.dtype
    return dtype


def check_one_image(model: nn.Module, place: object, image: Tensor, num_classes: int) -> None:
    """Refuse a model that drops the batch's dimension, or fails, where one image is left."""
    shape = (1, num_classes)
    expected = f"logits (batch, classes) = {shape} of a batch of one image"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = tuple(model(image).shape)
    except Exception as error:
        raise InputError(
            place, f"logits (batch, classes) = {shape} of a batch of one image", said(error)
        ) from error
    if found != shape:
        raise InputError(place, expected, str(found))


def check_evaluation_mode(model: nn.Module, place: object) -> None:
    """Raise InputError if a part of the model is in training mode, though .eval() was called."""
    if training := [name or "the model" for name, module in model.named_modules() if module.training]:
        raise InputError(place, "a model in evaluation mode after .eval()", f"{training[0]} in training mode")


def check_deterministic(model: nn.Module, place: object, resolution: int) -> None:
    """Raise InputError unless two passes of the same images give the same logits."""
    images = shown_images(model, resolution)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        first, second = model(images), model(images)
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        found = f"logits {(first - second).abs().max().item():g} apart in two passes of the same images"
        raise InputError(place, "a deterministic model (else noise=fresh, and version=eot-standard)", found)


def check_seeded(model: nn.Module, place: object, resolution: int) -> None:
    """Raise InputError unless a noisy model's draws follow from seeds, those of its noise and of global generators.

    Draws of a generator of its own, or of the system's, are others in each process and at each start, and in the
    second pass that a gradient of many draws takes.
    """
    images = shown_images(model, resolution)
    counted, found = CountedModel(model, images.device, 0), []
    with torch.no_grad():
        for _ in range(2):
            counted.reseed(0)
            found.append(counted(images))
    first, second = found
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        apart = f"logits {(first - second).abs().max().item():g} apart in two passes from one seed"
        expected = "a noisy model that draws from torch's, Python's or NumPy's global generator, which attacks seed"
        raise InputError(place, expected, f"{apart} (a generator of its own, or a count of its calls?)")


def check_batches(model: nn.Module, place: object, resolution: int) -> None:
    """Raise InputError unless an image's prediction is the same whatever batch it is in.

    Single images, halves and the whole batch are shown, in two orders. Of kapdist's models, the averages and the
    noise look at no other image, nor do norms with running statistics; batch norm without them does.
    """
    images = shown_images(model, resolution)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        whole = model(images)
        largest = whole.abs().max()
        for size in (1, len(images) // 2, len(images)):
            for order in (torch.arange(len(images)), torch.arange(len(images)).flip(0)):
                logits = torch.empty_like(whole)
                logits[order] = torch.cat([model(images[rows]) for rows in order.split(size)])
                check_same(logits, whole, batch_rounding(whole.dtype) * largest, place, size)


def check_batches_of_noise(model: nn.Module, place: object, resolution: int) -> None:
    """Raise InputError unless a noisy model's mean logits of an image are the same alone and in a batch.

    The noise differs, so means over some passes are compared, and only what is far beyond the noise is refused.
    """
    images = shown_images(model, resolution)[-4:]  # black and white ones move what a batch has in common
    with RandomStream(images.device, 0), torch.no_grad():
        alone, together = (
            torch.stack([torch.cat([model(part) for part in images.split(size)]) for _ in range(PASSES)]).double()
            for size in (1, len(images))
        )
    apart = (alone.mean(0) - together.mean(0)).square().mean(1)  # (images,)
    noise = (alone.var(0) + together.var(0)).mean(1) / PASSES
    if (apart > MOST_APART * noise + (BATCH_ROUNDING * together.abs().max()) ** 2).any():
        found = (
            f"mean logits of {PASSES} noisy passes {apart.max().sqrt().item():g} apart, alone and in a batch of "
            f"{len(images)} (batch norm without running statistics?)"
        )
        raise InputError(place, "predictions of an image that do not depend on the rest of its batch", found)


def batch_rounding(dtype: torch.dtype) -> float:
    """Return by how much of the largest logit two sizes of a batch may differ."""
    return max(BATCH_ROUNDING, 16 * torch.finfo(dtype).eps) if dtype.is_floating_point else BATCH_ROUNDING


def check_same(logits: Tensor, whole: Tensor, most: Tensor, place: object, size: int) -> None:
    apart = (logits - whole).abs().max()
    others = int(turned(logits, whole.argmax(1)).sum())
    if apart <= most and not others:
        return
    found = (
        f"logits {apart.item():g} apart, and {others} of {len(whole)} images in another class, between a batch of "
        f"{len(whole)} and batches of {size} (batch norm without running statistics?)"
    )
    raise InputError(place, "predictions of an image that do not depend on the rest of its batch", found)


def noise_differs_by_row(model: nn.Module, resolution: int, most_rows: int = MOST_COPIES) -> bool:
    """Tell whether the copies of an image in one batch get noise of their own, and hardly any that they share.

    Models that draw once for the whole batch, a random size for one or a member, do not; their draws need passes
    of their own. One pair of passes does not tell: two of a few members are often the same one. So the logits'
    variance between several passes is compared with that among the copies, as in an analysis of variance: what
    every copy draws for itself leaves both alike. The copies are many: their mean has what they share in full, and
    little of what is their own. A function of the model and of its noise's seed.

    Args:
        most_rows: of a pass.
    """
    copies = max(FEWEST_COPIES, min(MOST_COPIES, most_rows))
    images = shown_images(model, resolution)[:1].repeat(copies, 1, 1, 1)
    with RandomStream(images.device, 0), torch.no_grad():
        logits = torch.stack([model(images).double() for _ in range(CALLS)])
    rounding = (ROW_ROUNDING * logits.abs().max()) ** 2
    logits = logits - logits[0, 0].clone()  # of a model that draws nothing zeros are left
    among = logits.var(1).mean(0).sum()
    between = copies * logits.mean(1).var(0).sum()
    return bool(between <= MOST_SHARED * among + rounding)
