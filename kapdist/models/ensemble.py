"""Ensembles: independent networks in one model, whose logits are those of their mean or of a member drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from kapdist.errors import InputError
from kapdist.kap.noise import NoiseSource, NoisyLayer, draw_noise, share_noise_source

log = logging.getLogger(__name__)

MEANS = ("logits", "probabilities")
MEMBERS = "members."  # what the keys of its state begin with; behind it the member's number, then its own key

NUMBER = "{member}"


class MemberChoice(NoisyLayer):
    """Draws one of an ensemble's members for each image: a noise like others, with its mode, streams and state.

    The member with the largest of standard normal draws, so each is as likely. In mode "fixed" it is one member,
    the same for all images and calls.
    """

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members
        self.noise_source = NoiseSource()
        self.noise_layer = 0

    @property
    def has_noise(self) -> bool:
        return self.num_members > 1

    def silence(self) -> None:
        self.num_members = 1

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, ...) to the number of each one's member, (batch,)."""
        like = x.new_empty((len(x), self.num_members, 1, 1), dtype=torch.float32)
        drawn = draw_noise(self.noise_source, like, self.noise_layer)
        return drawn.flatten(1).argmax(1).expand(len(x))


class Ensemble(nn.Module):
    """Independent networks of one kind, trained together as one model.

    A pass is one pass of every member, one after the other. Their channels side by side (grouped convolutions) or
    stacked (torch.func.vmap) compute the same in more time on CPUs (`tools/bench_ensemble.py`), and would give all
    members one noise. Kernels are averaged within a member alone; the noise of each is its own.

    The state's keys are `members.<number>.` and the member's own: `save_weights(ensemble.members[0], path)` exports
    one. The loss is that of the mean, so members are trained jointly, as in the paper's baseline; trained apart,
    as in Lakshminarayanan et al., they are runs of their own, whose weights begin an ensemble.

    Args:
        members: networks from images to logits (batch, classes), of whatever noise.
        mean: of logits, or of probabilities: the log of the mean of the members' softmaxes, so that what leaves is
            logits all the same, for losses and attacks.
        random_member: in evaluation each image goes through one member, drawn for it, at the price of one pass; the
            mean of all with the noise off, and in training. The draw is a noise (`MemberChoice`).

    Shapes: images (batch, channels, height, width) to (batch, classes), float32 at least.
    Raises: ValueError for fewer members than one, an unknown mean, and a random one of a single member.
    Source: mean of logits, Bashivan et al. 2022 (arXiv 2210.00062); of probabilities, Lakshminarayanan et al. 2017
    (arXiv 1612.01474).
    """

    def __init__(self, members: Sequence[nn.Module], mean: str = "logits", random_member: bool = False) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble has one member at least, found none")
        if mean not in MEANS:
            raise ValueError(f"mean must be one of {', '.join(MEANS)}, found {mean!r}")
        if random_member and len(members) == 1:
            raise ValueError("a random member needs two at least, found 1")
        self.members = nn.ModuleList(members)
        self.members_mean = mean
        self.choice = MemberChoice(len(members)) if random_member else None
        share_noise_source(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.choice is not None and not self.training and self.choice.is_noisy():
            return self._of_drawn(x, self.choice(x))
        return self._mean([member(x) for member in self.members])

    def _of_drawn(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Each image's logits by its own member, a pass in which members share the batch."""
        if not len(x):
            return self._mean([self.members[0](x)])
        rows = [(drawn == number).nonzero().squeeze(1) for number in range(len(self.members))]
        parts = [self._mean([member(x[of])]) for member, of in zip(self.members, rows, strict=True) if len(of)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        every = torch.stack([at_least_float32(one) for one in logits])
        if self.members_mean == "logits":
            return every.mean(0)
        return every.log_softmax(2).logsumexp(0) - math.log(len(logits))

    def extra_repr(self) -> str:
        return f"mean={self.members_mean}"


@fx.wrap  # a trace has no types to look at
def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def networks(model: nn.Module) -> list[nn.Module]:
    """The networks that a model is made of: an ensemble's members, else the model alone."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


def starts_of(model: nn.Module, path: Path) -> list[tuple[nn.Module, Path]]:
    """An ensemble's members and the files that a path with `{member}` names for them; none for another path.

    Raises: InputError for such a path where the model is no ensemble.
    """
    if NUMBER not in str(path):
        return []
    if not isinstance(model, Ensemble):
        raise InputError(path, f"{NUMBER} in the path for an ensemble only (model.members)", "a single network")
    return [(member, Path(str(path).replace(NUMBER, str(n)))) for n, member in enumerate(model.members)]


def for_members(model: nn.Module, state: Mapping[str, Tensor], path: Path, start: bool) -> dict[str, Tensor]:
    """The state under an ensemble's keys, where one network's is to start every member; else as it is.

    Raises: InputError for an ensemble's state and a single network, and the other way round unless to start.
    """
    of_ensemble = all(key.startswith(MEMBERS) for key in state)
    if not isinstance(model, Ensemble):
        own = model.state_dict().keys()  # a network by other people may call its parts members as well
        if of_ensemble and not all(key.startswith(MEMBERS) for key in own):
            expected = "weights of one network (save_weights(ensemble.members[0], path) writes a member's)"
            raise InputError(path, expected, "those of an ensemble")
        return dict(state)
    count = len(model.members)
    if of_ensemble:
        found = len({key.split(".")[1] for key in state})
        if found != count:
            raise InputError(path, f"weights of {count} members (model.members)", f"those of {found}")
        return dict(state)
    if not start:
        raise InputError(path, f"weights of an ensemble of {count}", "those of one network")
    log.warning("%s: all %d members start alike; noise or another head must tell them apart", path, count)
    return {f"{MEMBERS}{number}.{key}": value for number in range(count) for key, value in state.items()}
