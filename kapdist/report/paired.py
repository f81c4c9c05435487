"""Two rows of a block on the same images: which of them only one withstood, or was right on without an attack."""

from __future__ import annotations

from typing import Literal

import polars

from kapdist.report.reading import Attack
from kapdist.report.table import Row
from kapdist.report.words import enumeration, p_text, points
from kapdist.statistics.paired import PairedDifference, compare

OTHER_IMAGES = "The two were not given the same images, so nothing is decided."
LEVEL = 0.05  # of the test of a difference
Asked = Literal["robust", "right"]


def paired(first: Row, second: Row, asked: Asked = "robust") -> PairedDifference | None:
    """Compare two rows image by image, where both were given the same images.

    Args:
        asked: what an image is counted for: that it withstood the attack, or that it was right without one.
    """
    both = side_by_side(first, second)
    return None if both is None else compare(both[asked].to_numpy(), both[f"{asked}_second"].to_numpy())


def side_by_side(first: Row, second: Row) -> polars.DataFrame | None:
    """Return (image, right, robust, right_second, robust_second); None without records of the same images."""
    ours, theirs = (verdicts(attack_of(row)) for row in (first, second))
    if ours is None or theirs is None or attack_of(first).images != attack_of(second).images:
        return None
    return ours.join(theirs, on="image", suffix="_second")


def verdicts(attack: Attack) -> polars.DataFrame | None:
    """Return (image, right, robust): correct without the attack; that, and not broken by it."""
    if attack.records is None:
        return None
    right = polars.col("clean_prediction") == polars.col("label")
    return attack.records.select("image", right=right, robust=right & polars.col("broken_by").is_null())


def why_unpaired(first: Row, second: Row) -> str:
    """Say why two rows cannot be compared image by image."""
    missing = [row.name for row in (first, second) if attack_of(row).records is None]
    return f"Without records.parquet of {enumeration(missing)} nothing is decided." if missing else OTHER_IMAGES


def image_by_image(first: Row, second: Row, found: PairedDifference, corrected: str = "") -> str:
    return (
        f"Image by image, {found.num_first} withstood the attack only on {first.name} and {found.num_second} "
        f"only on {second.name} (difference {paired_text(found)}{corrected})"
    )


def paired_text(found: PairedDifference) -> str:
    """Say a paired difference, its interval and the test: +5.0 points [+0.4, +9.9], McNemar's exact p = 0.031."""
    low, high = (points(bound).removesuffix(" points") for bound in (found.low, found.high))
    return f"{points(found.value)} [{low}, {high}], McNemar's exact {p_text(found.p, LEVEL)}"


def clean_sentence(first: Row, second: Row) -> str:
    """Say how the clean accuracies of two rows differ; nothing where they are right on the same images."""
    found = paired(first, second, "right")
    if found is None or found.num_first == found.num_second == 0:
        return ""
    if found.p >= LEVEL:
        return f"Whether their clean accuracies differ is not decided ({paired_text(found)})."
    side = "higher" if found.value > 0 else "lower"
    return f"The clean accuracy of {first.name} is {side} ({paired_text(found)})."


def is_one_model(first: Row, second: Row) -> bool:
    """Whether two rows are two attacks on the same network of one run."""
    ours, theirs = (
        (
            attack.summary.weights_sha256,
            *(attack.model.get(key) for key in ("factory", "factory_sha256", "arguments")),
        )
        for attack in map(attack_of, (first, second))
    )
    return first.run is second.run and ours == theirs


def attack_of(row: Row) -> Attack:
    assert row.attack is not None, "a row of a block with a setting has an attack"
    return row.attack
