"""Every attack in every norm on 2 to 12 and 100 classes, against answers that are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack.kinds import EPS, Linear, attacked, check, distances, images_at

from kapdist.attack.chunk import attack_chunk
from kapdist.attack.own.others import Others
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, OwnSettings

World = Any
CLASSES = (*range(2, 13), 100)
SHARES = (2.0, 0.002, 0.1, -0.4, 0.1)
"""Far, at the edge, near, wrong, and near: distances in eps. The last image is in a chunk of its own."""
BROKEN = [False, True, True, False, True]
FEWEST = {"apgd-dlr": 3, "apgd-t": 4}
FAR_REACHING = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "transfer")  # from an equal model
QUERIES = ("square", "random-noise", "hard-label")
OWN = OwnSettings(random_draws=20, hard_label_queries=40)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", [*FAR_REACHING, *QUERIES])
def test_each_attack_breaks_what_is_within_its_reach_and_nothing_else(
    make_plan: Callable[..., AttackPlan], short: None, name: str, norm: str
) -> None:
    reach = EPS[norm] if name in FAR_REACHING else 0.01 * EPS[norm]
    for num_classes in CLASSES:
        if num_classes < FEWEST.get(name, 2):
            with pytest.raises(InputError, match=f"at least . classes for {name} .*, found {num_classes}$"):
                make_plan(norm, EPS[norm], (name,), num_classes=num_classes)
            continue
        plan = make_plan(norm, EPS[norm], (name,), num_classes=num_classes, own_settings=OWN, compact=True)
        model = Linear(num_classes).requires_grad_(False)
        images, labels = images_at(SHARES, num_classes, norm)
        for chunk, rows in enumerate((slice(4), slice(4, 5))):
            outcome = attack_chunk(model, images[rows], labels[rows], plan, chunk, Others({"transfer": model}))
            distance, broken = distances(images[rows], labels[rows], num_classes, norm), outcome.attacks[0].broke
            assert torch.equal(outcome.clean_prediction == labels[rows], distance > 0)
            check(plan, images[rows], labels[rows], broken, outcome.adversarial)
            assert broken[(distance > 0) & (distance < reach)].all(), f"{name} with {num_classes} classes"


@pytest.mark.parametrize("norm", EPS)
def test_all_attacks_in_a_row_are_planned_sharded_and_merged(world: World, short: None, norm: str) -> None:
    for num_classes in (2, 3, 4, 100):
        names = [name for name in (*QUERIES, *FAR_REACHING[:-1]) if num_classes >= FEWEST.get(name, 2)]
        images, labels = images_at(SHARES, num_classes, norm)
        fields = {"norm": norm, "eps": EPS[norm], "attacks": tuple(names), "num_classes": num_classes}
        found = attacked(world, f"Linear({num_classes})", images, labels, **fields)
        check(found.plan, images, labels, found.broken, found.adversarial)
        assert found.broken.tolist() == BROKEN
        assert found.records["broken_by"][1] in QUERIES
        assert [stage.name for stage in found.summary.attacks] == names
        assert (found.summary.num_images, found.summary.num_clean_correct, found.summary.num_robust) == (5, 4, 1)


# Each version with its attacks and the fewest classes that they exist for.
VERSIONS = {
    "standard": (("apgd-ce", "apgd-t", "fab-t", "square"), 4),
    "plus": (("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"), 4),
    "rand": (("apgd-ce", "apgd-dlr"), 3),
    "eot-standard": (("apgd-ce", "apgd-t", "fab-t", "square"), 4),
}


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("version", VERSIONS)
def test_versions_score_the_exact_answers_or_are_refused(
    world: World, short: None, version: str, norm: str
) -> None:
    """On averages and single draws of a noise that no verdict depends on, and on none; with the screen first."""
    names, fewest = VERSIONS[version]
    noisy = version in ("rand", "eot-standard")
    options = {"noise": "fresh"} if noisy else {"screen": 2}
    options |= {"eot": 2, "screen": 2} if version == "eot-standard" else {}
    for num_classes in (fewest - 1, 11):
        images, labels = images_at(SHARES, num_classes, norm)
        model = f"{'RandomTemperature' if noisy else 'Linear'}({num_classes})"
        fields = {"norm": norm, "eps": EPS[norm], "version": version, "attacks": (), "num_classes": num_classes}
        if num_classes < fewest:
            with pytest.raises(InputError, match=f"version={version}: expected at least {fewest} classes for apgd"):
                attacked(world, model, images, labels, **fields | options)
            continue
        found = attacked(world, model, images, labels, **fields | options)
        check(found.plan, images, labels, found.broken, found.adversarial)
        assert found.broken.tolist() == BROKEN
        screen = () if version == "rand" else ("screen",)
        assert tuple(stage.name for stage in found.summary.attacks) == screen + names
        assert (found.summary.rescored is not None) == noisy
        if noisy:
            assert found.summary.rescored.clean.worst.value == 4 / 5
            assert found.summary.rescored.adversarial.majority.value == 1 / 5
