"""Defaults of a training and of an attack that follow from what is written, see following.py."""

from __future__ import annotations

import math
from collections.abc import Callable

from kapdist.config.following import Rule, Written, number
from kapdist.config.networks import SMALL_IMAGES

RAMP_MULTIPLE = 32  # pixels: what the strides of a ResNet divide
RESOLUTION = 32  # pixels
EPOCHS, WARMUP_EPOCHS = 16, 2.0
BATCH_SIZE = 1024
ADAMW_LR, ADAMW_WEIGHT_DECAY = 1e-3, 1e-2  # torch's own
STALL_MINUTES, TIMEOUT_MINUTES = 10.0, 15.0
LONGER = TIMEOUT_MINUTES / STALL_MINUTES
CHECKPOINT_STEPS = 1000  # where the clock is switched off
ATTACKED_IMAGES, EXAMINED_IMAGES = 5000, 64
# Of images in [0, 1]: RobustBench's (Croce et al. 2021, https://arxiv.org/abs/2010.09670), Linf on ImageNet and L2
# on CIFAR-10; L1 of Croce and Hein 2021 (https://arxiv.org/abs/2103.01208), on CIFAR-10.
ATTACK_EPS = {"Linf": 4 / 255, "L2": 0.5, "L1": 12.0}


def side_beside(written: Written, other: str, take: Callable[[int, int], int]) -> int | None:
    """Return an end of a ramp of which only the other end is written: data.resolution, or the other end too."""
    end, resolution = int(number(written, other)), int(number(written, "data.resolution")) or RESOLUTION
    if end < RAMP_MULTIPLE:  # none, or one that is refused
        return None
    return take(RAMP_MULTIPLE * max(1, resolution // RAMP_MULTIPLE), end)


def least_epochs(written: Written) -> int | None:
    """Return the epochs that what is written takes: warm-ups, the ramp, the steps of the learning rate.

    None where the default will do.
    """
    needed = number(written, "optim.warmup_epochs")
    if number(written, "data.min_resolution"):
        needed = max(needed, number(written, "data.start_ramp", "data.end_ramp"))
    if written.get("optim.schedule") == "steps":
        needed = max(needed, *(math.floor(epoch) + 1 for epoch in written.get("optim.milestones") or (0,)))
    if written.get("adversarial.mode", "off") not in ("off", False):
        needed = max(needed, number(written, "adversarial.eps_warmup_epochs", "adversarial.awp_warmup_epochs"))
    return math.ceil(needed) if needed > EPOCHS else None


def warm_up(written: Written) -> float | None:
    epochs = number(written, "train.epochs")
    return epochs / 2 if 0 < epochs < WARMUP_EPOCHS else None


def timeout(written: Written) -> float | None:
    stall = number(written, "train.stall_minutes")
    return LONGER * stall if stall >= TIMEOUT_MINUTES else None


def stall(written: Written) -> float | None:
    longest = number(written, "engine.timeout_minutes")
    return longest / LONGER if 0 < longest <= STALL_MINUTES else None


def when(key: str, values: tuple[object, ...], value: object) -> Callable[[Written], object]:
    """Return a rule's value: `value` where one of `values` is written under the key."""
    return lambda written: value if written.get(key) in values else None


def robust_epochs(written: Written) -> int | None:
    """Return the epochs between attacks where the best weights are to be the robust ones: those of evaluations."""
    if written.get("train.best") != "robust":
        return None
    return int(number(written, "train.evaluate_every_epochs")) or 1


def draws(*keys: str) -> Callable[[Written], object]:
    """Return the noise of whoever asks for more than one draw of it."""
    return lambda written: "fresh" if number(written, *keys) > 1 else None


def eps_of_norm(written: Written) -> float | None:
    """Return the size of an attack's perturbation in another norm than the default's."""
    norm = written.get("norm")
    return ATTACK_EPS[norm] if norm in ATTACK_EPS and norm != "Linf" else None


# In this order: what a rule puts in is written for those after it.
MODEL = (
    Rule("name", lambda written: "cnn" if number(written, "expansion") > 1 else None),
    Rule("stem", when("name", SMALL_IMAGES, "cifar")),
    Rule("zero_init_residual", when("name", SMALL_IMAGES, False)),
)
TRAINING = (
    Rule("data.max_resolution", lambda written: side_beside(written, "data.min_resolution", max)),
    Rule("data.min_resolution", lambda written: side_beside(written, "data.max_resolution", min)),
    Rule("data.crop", lambda written: "random-resized" if number(written, "data.min_resolution") else None),
    Rule("data.end_ramp", lambda written: number(written, "data.start_ramp") or None),
    Rule("data.order", when("data.cache", ("process",), "quasi-random")),
    Rule("adversarial.start", lambda written: "n-fgsm" if number(written, "adversarial.start_magnitude") else None),
    Rule("robust.every_epochs", robust_epochs),
    Rule("robust.noise", draws("robust.draws")),
    Rule("engine.name", lambda written: "deepspeed" if number(written, "engine.zero_stage") else None),
    Rule("optim.schedule", lambda written: "steps" if written.get("optim.milestones") else None),
    Rule("optim.lr", when("optim.name", ("adamw",), ADAMW_LR)),
    Rule("optim.weight_decay", when("optim.name", ("adamw",), ADAMW_WEIGHT_DECAY)),
    Rule("train.epochs", least_epochs),
    Rule("optim.warmup_epochs", warm_up),
    Rule("train.checkpoint_every_steps", when("train.checkpoint_every_minutes", (0,), CHECKPOINT_STEPS)),
    Rule("engine.timeout_minutes", timeout),
    Rule("train.stall_minutes", stall),
)
ATTACK = (
    Rule("version", lambda written: "custom" if written.get("attacks") else None),
    Rule("eps", eps_of_norm),
    Rule("noise", draws("eot")),
    Rule("noise", when("version", ("eot-standard",), "fresh")),
)
EVALUATION = (Rule("noise", draws("draws")),)
