"""All checks on one model and some images, in order: read me first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.attack.ball import Ball
from kapdist.attack.judged import not_finite
from kapdist.config import SanityConfig
from kapdist.errors import InputError
from kapdist.sanity import signal
from kapdist.sanity.contract import Contract
from kapdist.sanity.effort import Effort, accuracy, gained
from kapdist.sanity.landscape import landscape
from kapdist.sanity.points import interior
from kapdist.sanity.remedies import Verdicts, act
from kapdist.sanity.subject import Subject
from kapdist.sanity.verdict import causes, judged, overall

CLEAN_DRAWS = 32
STEPS = 11  # calls of `tick`
LEVELS = 0.1
ACTED_AFTER = {"never": (), "fail": ("causes",), "warn": ("causes", "suspected")}


def examine(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    config: SanityConfig,
    *,
    mode: str = "off",
    seed: int = 0,
    batch_size: int = 64,
    surrogates: Sequence[nn.Module] = (),
    stored: float | None = None,
    certified: float | None = None,
    verdicts: Verdicts | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return checks, curves and counts as JSON values; a function of the arguments alone.

    Args:
        model: in eval mode, frozen, on the images' device.
        images: (batch, 3, height, width), float32 in [0, 1].
        labels: (batch,), int64.
        mode: of the model's noise; fresh declares it random.
        surrogates: models whose adversarial images are tried on this one.
        stored: share of stored adversarial images that break the rules, if there are any.
        certified: share of certified images that an attack breaks within their radius, if there are any.
        verdicts: of the attack whose number is in question; None: the report's own attack with gradients.
        tick: called after each of STEPS parts.

    Raises:
        InputError: the model has none of the images right, or its logits on one are not finite.
    """
    first = copied(model) if config.remedies.after != "never" else None
    subject = Subject(model, mode, seed, batch_size)
    contract = Contract(subject, images)
    if not contract.first.isfinite().all():  # NaN is unlike itself: checks would name causes that are none
        names = [f"examined image {number}" for number in range(len(images))]
        raise not_finite("model", contract.first, images, names)
    draws = config.draws if contract.is_random else 1
    judges = subject.fresh(CLEAN_DRAWS) if draws > 1 else (0,)
    right = subject.scores(images, judges).argmax(1) == labels
    if not right.any():
        raise InputError("model", f"at least one of {len(labels)} images classified correctly", "none")
    clean = clean_draws(subject, images, judges)
    tick()
    effort = Effort(subject, images[right], labels[right], ball, config, seed, draws)
    numbers, curves = effort.measure(tick)
    numbers |= clean | transfers(effort, surrogates) | {"stored": stored, "certified": certified}
    tick()
    numbers |= gradients(effort, curves)
    tick()
    numbers |= contract.measure(declared_random=mode == "fresh")
    if numbers["levels"] is not None and numbers["levels"] < LEVELS:
        numbers["quantised"] = None  # logits of few values stay as they are for another reason
    tick()
    found = outcome(numbers, effort) | {"num_images": len(right), "curves": curves}
    if asked := [cause for after in ACTED_AFTER[config.remedies.after] for cause in found[after]]:
        found["acted"] = act(effort, right, verdicts, asked, surrogates, first)
    tick()
    return found | {"forwards": subject.forwards, "backwards": subject.backwards}


def copied(model: nn.Module) -> nn.Module | None:
    """Return the model before anything was asked of it; None where somebody else's cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return None


def outcome(numbers: dict[str, float | None], effort: Effort) -> dict[str, Any]:
    rows = judged(numbers)
    return {
        "verdict": overall(rows),
        "causes": causes(rows),
        "suspected": [cause for cause in causes(rows, "warn") if cause not in causes(rows)],
        "num_clean_correct": len(effort.labels),
        "draws": effort.draws,
        "checks": rows,
        "attacks": {name: accuracy(broken) for name, broken in effort.broken.items()},
    }


def gradients(effort: Effort, curves: dict[str, Any]) -> dict[str, float | None]:
    """Return what is known of gradients at clean points, random ones and where the attack ended; add curves."""
    subject, images, labels, ball, seed = effort.subject, effort.images, effort.labels, effort.ball, effort.seed
    sets = images, interior(ball, images, seed, "signal"), effort.main.last
    found = signal.measure(subject, sets, labels, ball, seed)
    found |= agreement(subject, images, labels, effort.draws, curves)
    near = signal.by_distance(subject, images, labels, ball, seed)
    curves["neighbours"] = {"x": [0.0, *signal.DISTANCES], "y": [1.0, *near]}
    curves["landscape"] = landscape(subject, images[:1], labels[:1], ball, seed, effort.draws)
    return found


def clean_draws(subject: Subject, images: Tensor, draws: range | tuple[int, ...]) -> dict[str, float | None]:
    """Return how often draws change the prediction, and a logit's deviation over draws by that over classes."""
    if len(draws) == 1:
        return {"flips": None, "spread": None}
    logits = torch.stack([subject.logits(images, draw) for draw in draws]).double()
    predictions = logits.argmax(2)
    flips = (predictions != predictions.mode(0).values).double().mean().item()
    return {"flips": flips, "spread": (logits.std(0).mean() / logits.mean(0).std(1).mean()).item()}


def agreement(
    subject: Subject, images: Tensor, labels: Tensor, draws: int, curves: dict[str, Any]
) -> dict[str, float | None]:
    if draws == 1:
        return {"agreement": None}
    counts = sorted({count for count in (1, 2, 5, 10, 20, 50) if count < draws} | {draws})
    found = signal.by_draws(subject, images, labels, counts)
    curves["agreement"] = {"x": counts, "y": found}
    return {"agreement": found[-1]}


def transfers(effort: Effort, surrogates: Sequence[nn.Module]) -> dict[str, float | None]:
    """Return what adversarial images of the noise fixed or off, and of other models, break alone."""
    subject = effort.subject
    sources: dict[str, list[Subject]] = {"transfer off": [], "transfer fixed": []}
    if effort.draws > 1:
        sources["transfer fixed"] = [Subject(subject.model, "fixed", subject.seed, subject.batch_size)]
    if effort.draws > 1 and subject.mode == "fresh":
        sources["transfer off"] = [Subject(subject.model, "off", subject.seed, subject.batch_size)]
    sources["surrogate"] = [Subject(model, "off", subject.seed, subject.batch_size) for model in surrogates]
    return {name: transferred(effort, name, found) if found else None for name, found in sources.items()}


def transferred(effort: Effort, name: str, sources: Sequence[Subject]) -> float:
    config, broken = effort.config, []
    for source in sources:
        other = Effort(source, effort.images, effort.labels, effort.ball, config, effort.seed, draws=1)
        broken.append(effort.breaks(other.run(iterations=2 * config.iterations).last))
    effort.broken[name] = torch.stack(broken).any(0)
    return gained(effort.broken[name], effort.white_box)
