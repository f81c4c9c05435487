"""The classes of noisy copies of an image, counted: draw after draw of a stream that belongs to the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kapdist.attack.chunk import place_of
from kapdist.attack.counted import CountedModel
from kapdist.attack.forms import is_ours_alone
from kapdist.errors import InputError
from kapdist.models.shown import where_not_finite
from kapdist.records.attack_plan import AttackPlan
from kapdist.rng import Identity, derive_seed


class NoisyCopies:
    """A model that is shown copies of one image under Gaussian noise.

    Args:
        model: in eval mode, frozen, on the device, its noise in the plan's mode.
        subject: says what the model is, the seed, and how many copies go through it at once.
    """

    def __init__(self, model: nn.Module, subject: AttackPlan, device: torch.device) -> None:
        self.subject, self.device = subject, device
        self.model = CountedModel(model, device, subject.seed, inference=is_ours_alone(subject))
        self.channels_last = subject.model.factory is None  # decides which draw falls on which pixel
        # A model that draws once for a whole batch would give all its copies one and the same draw.
        self.at_once = subject.images_per_pass if subject.draws_together else 1
        self.memory = torch.empty(0, device=device)

    def stream(self, image_id: int, sigma: float, purpose: str, block: int) -> torch.Generator:
        """Return the noise of an image, and put the model's own randomness at a place that belongs to it too."""
        identity: tuple[Identity, ...] = ("certify", purpose, image_id, repr(sigma), block)
        if not self.subject.deterministic:
            self.model.reseed(derive_seed(self.subject.seed, *identity, "model"))
        return torch.Generator(self.device).manual_seed(derive_seed(self.subject.seed, *identity))

    def counts(self, image: Tensor, image_id: int, sigma: float, draws: int, stream: torch.Generator) -> Tensor:
        """Return how many of the next draws of a stream fall on each class, (classes,), int64.

        Args:
            image: (channels, height, width), float32 in [0, 1]; its noisy copies may leave that range.

        Raises:
            InputError: logits of a copy are not finite.
        """
        counts = torch.zeros(self.subject.model.num_classes, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for start in range(0, draws, self.at_once):
                copies = self.noisy(image, sigma, min(self.at_once, draws - start), stream)
                logits = self.model(copies)
                if not logits.isfinite().all():
                    said = where_not_finite(logits, copies, [f"a noisy copy of image {image_id}"] * len(copies))
                    raise InputError(place_of(self.subject), f"finite logits under noise of sigma {sigma:g}", said)
                counts += torch.bincount(logits.argmax(1), minlength=len(counts))
        return counts

    def noisy(self, image: Tensor, sigma: float, copies: int, stream: torch.Generator) -> Tensor:
        """Return copies under noise, (copies, channels, height, width), in memory that the next call overwrites.

        Drawn in the order of memory and in place: torch draws into other layouts one number at a time.
        """
        channels, height, width = image.shape
        shape = (height, width, channels) if self.channels_last else (channels, height, width)
        if self.memory.shape[1:] != shape or len(self.memory) < copies:
            self.memory = torch.empty((copies, *shape), device=self.device)
        batch = self.memory[:copies].normal_(0, sigma, generator=stream)
        if self.channels_last:
            batch = batch.permute(0, 3, 1, 2)
        return batch.add_(image)
