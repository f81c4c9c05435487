"""One cell: every image corrupted, or published so, and predicted. A function of the plan and the images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.counted import CountedModel
from kapdist.attack.forms import is_ours_alone
from kapdist.attack.judged import check_state_kept, predict
from kapdist.attack.kept import Kept
from kapdist.corruptions.corrupt import corrupt
from kapdist.corruptions.frost import FrostSource
from kapdist.corruptions.noise import random_gaussian, random_uniform
from kapdist.corruptions.pixels import to_values
from kapdist.corruptions.published import Among
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.records.corruptions import CLEAN, GAUSSIAN, UNIFORM, Cell, CorruptionPlan
from kapdist.rng import derive_seed, generator


def predict_chunk(
    model: nn.Module, images: Tensor, plan: CorruptionPlan, cell: Cell, chunk: int, pool: ThreadPoolExecutor
) -> Tensor:
    """Return the predictions, (batch,), int64, for a chunk of the cell's images under one corruption.

    Args:
        model: in eval mode, frozen.
        images: (batch, 3, height, width), float32 in [0, 1], on the CPU; those of a published set are corrupted.

    Raises:
        InputError: images that are not RGB, logits that are not finite, or a model that changes its state.
    """
    subject, published = plan.subject_of(cell), plan.published if cell.source else None
    device = torch.device("cpu" if subject.device == "cpu" else "cuda")
    before = Kept(model)
    batch = (images if published else corrupted(images, subject.chunk_images(chunk), plan, cell, pool)).to(device)
    among = published.classes if published and published.masked else None
    shown = Among(model, among) if among else model
    with torch.no_grad(), answering(shown, plan, cell, chunk, device) as answer:
        prediction = predict(answer, batch, subject, chunk).cpu()
    check_state_kept(before, subject)
    return torch.tensor(among)[prediction] if among else prediction


def corrupted(
    images: Tensor, ids: tuple[int, ...], plan: CorruptionPlan, cell: Cell, pool: ThreadPoolExecutor
) -> Tensor:
    """Return images, (batch, 3, height, width), float32 in [0, 1], each a function of its pixels and its id."""
    if images.shape[1] != 3:
        raise InputError(plan.subject.data.path, "RGB images", f"{images.shape[1]} channels")
    if cell.kind == CLEAN:
        return images.contiguous()
    values = images.permute(0, 2, 3, 1).numpy()
    made = pool.map(lambda image, image_id: corrupted_values(image, image_id, plan, cell), values, ids)
    return torch.from_numpy(np.stack(list(made))).permute(0, 3, 1, 2).contiguous()


def corrupted_values(image: np.ndarray, image_id: int, plan: CorruptionPlan, cell: Cell) -> np.ndarray:
    """Return one image, (height, width, 3), float32 in [0, 1]."""
    seed = plan.subject.seed
    if cell.level is None:
        pixels = np.rint(image * 255).astype(np.uint8)
        source = FrostSource(plan.frost_folder, plan.frost)
        pixels = corrupt(pixels, cell.kind, cell.severity, seed=seed, image_id=image_id, frost_source=source)
        return to_values(pixels).astype(np.float32)
    # Of the level and not of its place in the list: a longer list changes nothing at the levels that it shares.
    random = generator(seed, "random noise", cell.kind, cell.norm or "", repr(cell.level), image_id)
    if cell.kind == GAUSSIAN:
        return random_gaussian(image, cell.level, random).astype(np.float32)
    assert cell.kind == UNIFORM
    assert cell.norm is not None
    return random_uniform(image, cell.norm, cell.level, random).astype(np.float32)


@contextmanager
def answering(
    model: nn.Module, plan: CorruptionPlan, cell: Cell, chunk: int, device: torch.device
) -> Iterator[nn.Module]:
    """Give the model in the plan's noise mode; fresh noise is averaged over the plan's draws."""
    subject = plan.subject
    seed = derive_seed(subject.seed, "corruptions", cell.name, chunk)
    fixed = derive_seed(subject.seed, "corruptions")  # one noise for every image and cell
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), noise(model, subject.noise, seed=fixed):
        counted = CountedModel(model, device, seed, inference=is_ours_alone(subject))
        if subject.deterministic:
            yield counted
        else:
            yield AveragedModel(counted, subject.eot, subject.images_per_pass, seed, subject.draws_together)
