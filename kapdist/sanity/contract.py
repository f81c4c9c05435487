"""Is the model a function of its image: the same logits again, in other company, under other random numbers?"""

from __future__ import annotations

from torch import Tensor

from kapdist.attack.model import state_sha256
from kapdist.sanity.subject import Subject

ALONE = 4  # images that are shown by themselves
REDRAWS = 8  # of one of two members all alike one time in 256
RANDOM_ABOVE = 1e-3  # of the logits' spread; rounding stays far below


class Contract:
    """What the model gave at first, to be compared with what it gives at the end."""

    def __init__(self, subject: Subject, images: Tensor) -> None:
        self.subject, self.images = subject, images
        self.weights = state_sha256(subject.model)
        self.first = subject.logits(images)
        again, other = subject.logits(images), subject.logits(images, *subject.fresh(1))
        self.repeat = self.differs(again)
        self.redrawn = max(self.differs(other), self.differs_on_few())

    def differs_on_few(self) -> float:
        """Return the largest difference among some draws on a few images: one draw may be of the same member."""
        few = self.images[:ALONE]
        first, *others = (self.subject.logits(few, draw).double() for draw in (0, *self.subject.fresh(REDRAWS)))
        return max((other - first).abs().max().item() for other in others) / self.spread

    def differs(self, logits: Tensor) -> float:
        """Return the largest difference from the first logits, in units of their spread over all classes."""
        return (logits.double() - self.first.double()).abs().max().item() / self.spread

    @property
    def spread(self) -> float:
        return max(self.first.double().std().item(), 1e-30)

    @property
    def is_random(self) -> bool:
        return max(self.repeat, self.redrawn) > RANDOM_ABOVE

    def measure(self, declared_random: bool) -> dict[str, float | None]:
        """Return the numbers of the first check; call it last, when the model has seen all that there is."""
        changed = float(state_sha256(self.subject.model) != self.weights)
        state = max(self.repeat, self.differs(self.subject.logits(self.images)), changed)
        unsteady = state > RANDOM_ABOVE
        return {
            "training": float(sum(module.training for module in self.subject.model.modules())),
            "state": state,
            "random": None if declared_random or unsteady else self.redrawn,
            "company": None if self.is_random or unsteady else self.company(),
            "levels": self.levels(),
        }

    def company(self) -> float:
        """Return by how much images alone, and in the reversed batch, differ from those in the batch."""
        few = self.images[:ALONE].split(1)
        alone = max(self.differs_at(self.subject.logits(image), index) for index, image in enumerate(few))
        return max(alone, self.differs(self.subject.logits(self.images.flip(0)).flip(0)))

    def differs_at(self, logits: Tensor, index: int) -> float:
        return (logits.double() - self.first[index].double()).abs().max().item() / self.spread

    def levels(self) -> float:
        """Return the share of distinct values among all logits: a head that answers by argmax has two."""
        return len(self.first.unique()) / self.first.numel()
