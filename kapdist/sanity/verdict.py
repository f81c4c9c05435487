"""The checks: what each number means, where it becomes a warning or a failure, its source, the cause it names.

docs/sanity.md has the numbers of honest models and of planted defences beside these thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kapdist.records.sanity import Status

ATHALYE = "Athalye et al. 2018, https://arxiv.org/abs/1802.00420"
EXPECTATION = "Athalye et al. 2018, https://arxiv.org/abs/1707.07397"
CARLINI = "Carlini et al. 2019, https://arxiv.org/abs/1902.06705"
DISTILLATION = "Carlini & Wagner 2016, https://arxiv.org/abs/1607.04311"
TRAMER = "Tramèr et al. 2020, https://arxiv.org/abs/2002.08347"
AUTOATTACK = "Croce & Hein 2020, https://arxiv.org/abs/2003.01690"
PINTOR = "Pintor et al. 2022, https://arxiv.org/abs/2106.09947"
BALDUZZI = "Balduzzi et al. 2017, https://arxiv.org/abs/1702.08591"
MOSBACH = "Mosbach et al. 2018, https://arxiv.org/abs/1810.12042"
SMOOTHING = "Cohen et al. 2019, https://arxiv.org/abs/1902.02918"
UESATO = "Uesato et al. 2018, https://arxiv.org/abs/1802.05666"

GROUPS = {
    1: "The model is a function of its image",
    2: "Clean predictions over draws of the noise",
    3: "Gradients carry a signal",
    4: "More effort does not break it further",
    5: "Noise fixed and off, and other models, give no better attack",
    6: "Larger eps break more, and no bound breaks everything",
    7: "Stronger attacks are stronger",
    8: "Gradients are there and true",
    9: "Adversarial images obey the rules and the loss converged",
    10: "No attack breaks what is certified",
}


@dataclass(frozen=True)
class Check:
    """One number and how it is judged; `worse` says on which side of a threshold it becomes suspect."""

    name: str
    group: int
    title: str
    cause: str
    source: str
    warn: float | None
    fail: float | None
    worse: Literal["above", "below"] = "above"

    def judge(self, value: float | None) -> Status:
        if value is None:
            return "not asked"
        if self.beyond(value, self.fail):
            return "fail"
        return "warn" if self.beyond(value, self.warn) else "pass"

    def beyond(self, value: float, threshold: float | None) -> bool:
        if threshold is None:
            return False
        return value > threshold if self.worse == "above" else value < threshold


# What an attack breaks beyond another one is a share of images, of which one is forgiven.
FEW, SOME, MANY = 0.002, 0.02, 0.10
CHECKS = (
    Check("training", 1, "Modules left in training mode", "training mode", CARLINI, None, 0),
    Check("state", 1, "Same image, same draw, other logits (relative)", "state", TRAMER, 1e-4, 1e-3),
    Check("random", 1, "Declared deterministic, yet draws differ (relative)", "randomness", ATHALYE, 1e-4, 1e-3),
    Check("company", 1, "Logits alone differ from those in a batch (relative)", "batch", TRAMER, 1e-4, 1e-3),
    Check("levels", 1, "Distinct values among the logits", "discrete output", TRAMER, 0.5, 0.1, "below"),
    Check("flips", 2, "Draws that change the prediction", "randomness", CARLINI, 0.05, None),
    Check("spread", 2, "Spread of a logit over draws, of that over classes", "randomness", CARLINI, 1.0, None),
    Check("agreement", 3, "Cosine of two independent averages", "randomness", EXPECTATION, 0.5, 0.1, "below"),
    Check("neighbours", 3, "Cosine of gradients eps/8 apart", "shattered gradient", BALDUZZI, 0.5, 0.3, "below"),
    Check("draws", 4, "Broken by twice the draws alone", "randomness", ATHALYE, 0.05, MANY),
    Check("iterations", 4, "Broken by twice the iterations alone", "unfinished attack", CARLINI, 0.05, MANY),
    Check("restarts", 4, "Broken by restarts alone", "rugged loss", MOSBACH, MANY, 0.2),
    Check("transfer off", 5, "Broken from the noise off alone", "randomness", TRAMER, SOME, MANY),
    Check("transfer fixed", 5, "Broken from the noise fixed alone", "randomness", TRAMER, SOME, MANY),
    Check("surrogate", 5, "Broken from the surrogate alone", "masked gradient", ATHALYE, FEW, SOME),
    Check("monotone", 6, "Largest rise of accuracy with eps", "masked gradient", CARLINI, SOME, 0.05),
    Check("unbounded", 6, "Accuracy without a bound", "masked gradient", ATHALYE, FEW, SOME),
    Check("one step", 7, "Broken by FGSM alone", "masked gradient", ATHALYE, FEW, SOME),
    Check("random points", 7, "Broken by random points alone", "masked gradient", ATHALYE, FEW, SOME),
    Check("square", 7, "Broken by Square alone", "masked gradient", AUTOATTACK, FEW, SOME),
    Check("margin loss", 7, "Broken by the margin loss alone", "saturated softmax", AUTOATTACK, 0.05, MANY),
    Check("nan", 8, "Images with a gradient that is not finite", "NaN gradient", PINTOR, None, 0),
    Check("zero", 8, "Images with no gradient at all", "non-differentiable step", PINTOR, SOME, MANY),
    Check("underflow", 8, "Gradients that only double precision sees", "vanishing gradient", PINTOR, SOME, MANY),
    Check("vanishing", 8, "Promised change of the margin", "vanishing gradient", MOSBACH, 1e-2, 1e-3, "below"),
    Check("saturated", 8, "Pixels that cross-entropy rounds away", "saturated softmax", DISTILLATION, 0.05, 0.2),
    Check("quantised", 8, "Images deaf to a change of 1e-5", "quantised input", ATHALYE, SOME, MANY),
    Check("false", 8, "Backward against finite differences", "false gradient", UESATO, 0.1, 0.2),
    Check("outside", 9, "Adversarial images beyond eps (relative)", "broken rules", CARLINI, None, 1e-4),
    Check("stored", 9, "Stored adversarial images that break the rules", "broken rules", CARLINI, None, 0),
    Check("converged", 9, "Rise of the margin in the last quarter", "unfinished attack", PINTOR, 0.25, None),
    Check("certified", 10, "Broken within a certified radius", "broken certificate", SMOOTHING, None, 0),
)

CAUSES = {
    "training mode": "a part of the model is in training mode",
    "state": "the model remembers earlier calls: a counter, a cache, statistics, a generator of its own",
    "randomness": "the model's randomness hides its gradient or decides the verdict: average over more draws",
    "batch": "an image's logits depend on the other images of its batch",
    "discrete output": "the head answers with few values (an argmax), so scores and gradients say nothing",
    "shattered gradient": "the gradient changes from point to point and does not point anywhere",
    "unfinished attack": "the attack was not done: more iterations break more",
    "rugged loss": "the loss has many local maxima: many starts are needed",
    "masked gradient": "an attack that should be weaker breaks more: the gradients mislead",
    "saturated softmax": "large logits round the cross-entropy's gradient to zero: attack the margin",
    "NaN gradient": "backward gives values that are not finite",
    "non-differentiable step": "the output changes and the gradient is zero: a step without derivative or a detach",
    "vanishing gradient": "the gradient is far smaller than the change of the output, or lost to rounding",
    "quantised input": "the input is rounded before the network sees it",
    "false gradient": "backward is not the derivative of forward: a detached branch, straight-through, jumps",
    "broken certificate": "the smoothed model changes its class where a certificate says that it does not",
    "broken rules": "an adversarial image leaves the ball, [0, 1] or the finite numbers",
}


def judged(numbers: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return all checks with their numbers and statuses, JSON values.

    Raises:
        KeyError: a number that no check asks for, or a check without its number.
    """
    if unknown := set(numbers) ^ {check.name for check in CHECKS}:
        raise KeyError(f"numbers and checks differ in {sorted(unknown)}")
    rows = []
    for check in CHECKS:
        value = numbers[check.name]
        value = value if value is None or math.isfinite(value) else 1e30  # JSON has no infinity
        row = asdict(check) | {"value": value, "status": check.judge(value)}
        rows.append(row | {"group_title": GROUPS[check.group], "meaning": CAUSES[check.cause]})
    return rows


def overall(rows: list[dict[str, Any]]) -> Status:
    found = {row["status"] for row in rows}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def causes(rows: list[dict[str, Any]], status: Status = "fail") -> list[str]:
    """Return the causes that checks of this status name, each once, in the order of the checks."""
    return list(dict.fromkeys(row["cause"] for row in rows if row["status"] == status))
