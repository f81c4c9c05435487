"""What may and may not be concluded from a block of the comparison, computed from its numbers.

In a pilot nearly all of the robustness came from the noise. So KAP is only ever compared with a model that has
the same noise and K = 1, and where that model is missing the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import polars

from kapdist.report.reading import Attack, Run
from kapdist.report.table import Block, Row
from kapdist.report.trainings import config_of, differences, outside_noise
from kapdist.report.words import accuracy_text, enumeration, plural, points
from kapdist.statistics.paired import PairedDifference, compare

NO_NOISE = "None of these models has noise of its own, so there was none to switch off in this attack."
OTHER_IMAGES = "The two were not given the same images, so nothing is decided."
ONE_TRAINING = (
    "The intervals are 95% intervals over images, and the tests are over images too. They do not cover how much a "
    "result changes when a model is trained again with another seed."
)
LEVEL = 0.05  # of the test of a difference


@dataclass(frozen=True)
class Claim:
    """A sentence beside a block; one that `warns` is about a number that should not be read as it stands."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Gap:
    """A model with KAP beside the one with the same noise and K = 1: what KAP adds, at most."""

    kap: Row
    reference: Row

    @property
    def robust(self) -> float:
        """Difference of the robust accuracies, a share of images."""
        kap, reference = attack_of(self.kap).summary, attack_of(self.reference).summary
        return kap.robust_accuracy.value - reference.robust_accuracy.value

    @property
    def clean(self) -> float:
        """Difference of the clean accuracies, a share of images."""
        kap, reference = attack_of(self.kap).summary, attack_of(self.reference).summary
        return kap.clean_accuracy.value - reference.clean_accuracy.value

    @property
    def paired(self) -> PairedDifference | None:
        """The difference image by image; None where the two were not given the same images."""
        return paired(self.kap, self.reference)

    @property
    def differences(self) -> tuple[str, ...]:
        """What else differs between the two trainings, as config keys."""
        return differences(self.kap.run, self.reference.run)


def claims(block: Block, runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Return the remarks that belong to a block of a comparison of `runs`, in reading order."""
    if block.setting is None:
        text = "Clean accuracy is that of the last evaluation in training; no robustness is known."
        return (Claim(text),)
    return (
        *noise_claims(block),
        *gap_claims(block),
        *two_claims(block),
        Claim(ONE_TRAINING),
        *image_claims(block),
        *(claim for row in block.rows for claim in row_claims(row)),
        *note_claims(block),
        *absence_claims(block, runs),
    )


def noise_claims(block: Block) -> Iterator[Claim]:
    assert block.setting is not None
    kinds = list(dict.fromkeys(name for row in block.rows for name in row.noises)) or ["activation noise"]
    noise = kinds[0].capitalize() if len(kinds) == 1 else f"Noise ({enumeration(kinds)})"
    if block.setting.noise != "off":
        yield Claim(f"{noise} was on during this attack, mode {block.setting.noise}.")
    elif all(row.own and not row.noises for row in block.rows):
        yield Claim(NO_NOISE)
    else:
        yield Claim(
            f"{noise} was switched off during this attack, so these numbers say nothing about the noise itself at "
            "test time."
        )


def gap_claims(block: Block) -> Iterator[Claim]:
    pairs = gaps(block)
    yield from (Claim(gap_text(pair)) for pair in pairs)
    # Two models with KAP may stand beside the same one without: what its noise does is said once.
    references = {pair.reference.name: pair.reference for pair in pairs if has_noise(pair.reference)}
    for reference in references.values():
        if plain := least_different(reference, [row for row in block.rows if is_plain(row)]):
            yield noise_alone_claim(reference, plain)
    paired = [pair.kap for pair in pairs]
    for row in block.rows:
        if has_kap(row) and has_noise(row) and row not in paired:
            text = (
                f"{row.name} has both KAP and {noise_text(row)}, but no model with the same noise and K = 1 is in "
                f"this comparison: what KAP does and what the noise does cannot be told apart."
            )
            yield Claim(text, warns=True)


def two_claims(block: Block) -> Iterator[Claim]:
    """Decide between the only two models of a block, image by image, where neither is the other with KAP."""
    if len(block.rows) != 2 or gaps(block):
        return
    first, second = sorted(block.rows, key=lambda row: -attack_of(row).summary.robust_accuracy.value)
    found = paired(first, second)
    if found is None:
        yield Claim(why_unpaired(first, second))
        return
    decided = "more robust" if found.p < LEVEL else "not shown to be more robust"
    yield Claim(f"{image_by_image(first, second, found)}: {first.name} is {decided}.")


def gaps(block: Block) -> tuple[Gap, ...]:
    """Pair every model with KAP with the most similar one that has the same noise and K = 1."""
    found = []
    for row in block.rows:
        if has_kap(row):
            others = [other for other in block.rows if is_reference(other, row)]
            if reference := least_different(row, others):
                found.append(Gap(row, reference))
    return tuple(found)


def gap_text(gap: Gap) -> str:
    kap, reference = (attack_of(row).summary.robust_accuracy for row in (gap.kap, gap.reference))
    other = "noise alone" if has_noise(gap.reference) else "plain"
    sentences = [
        f"KAP minus {other} ({gap.kap.name} minus {gap.reference.name}, {noise_text(gap.reference)}): "
        f"{points(gap.robust)} of robust accuracy ({accuracy_text(kap)} against {accuracy_text(reference)}), "
        f"{points(gap.clean)} of clean accuracy.",
        verdict(gap),
        other_differences(gap),
    ]
    return " ".join(filter(None, sentences))


def verdict(gap: Gap) -> str:
    """Decide by the images on which only one of the two models withstood; two intervals decide nothing."""
    found = gap.paired
    if found is None:
        return why_unpaired(gap.kap, gap.reference)
    counts = image_by_image(gap.kap, gap.reference, found)
    if found.p >= LEVEL:
        return f"{counts}: it is not decided whether KAP changes robust accuracy here."
    side = "above" if gap.robust > 0 else "below"
    return f"{counts}: the model with KAP is {side} the one without it."


def image_by_image(first: Row, second: Row, found: PairedDifference) -> str:
    return (
        f"Image by image, {found.num_first} withstood the attack only on {first.name} and {found.num_second} "
        f"only on {second.name} (difference {paired_text(found)})"
    )


def paired_text(found: PairedDifference) -> str:
    """Say a paired difference, its interval and the test: +5.0 points [+0.4, +9.9], McNemar's exact p = 0.031."""
    low, high = (points(bound).removesuffix(" points") for bound in (found.low, found.high))
    p = "p < 0.0001" if found.p < 1e-4 else f"p = {found.p:.2g}"
    return f"{points(found.value)} [{low}, {high}], McNemar's exact {p}"


def paired(first: Row, second: Row) -> PairedDifference | None:
    """Compare two rows image by image, where both were given the same images."""
    ours, theirs = (robust_images(attack_of(row)) for row in (first, second))
    if ours is None or theirs is None or attack_of(first).images != attack_of(second).images:
        return None
    both = ours.join(theirs, on="image", suffix="_second")
    return compare(both["robust"].to_numpy(), both["robust_second"].to_numpy())


def why_unpaired(first: Row, second: Row) -> str:
    """Say why two rows cannot be compared image by image."""
    missing = [row.name for row in (first, second) if attack_of(row).records is None]
    return f"Without records.parquet of {enumeration(missing)} nothing is decided." if missing else OTHER_IMAGES


def other_differences(gap: Gap) -> str:
    if not gap.differences:
        return ""
    return f"The two runs also differ in {', '.join(gap.differences)}, so the gap is not KAP's alone."


def noise_alone_claim(reference: Row, plain: Row) -> Claim:
    noisy, bare = (attack_of(row).summary.robust_accuracy.value for row in (reference, plain))
    pair, found = f"{reference.name} minus {plain.name}", paired(reference, plain)
    test = f" (image by image {paired_text(found)})" if found else ""
    sentences = [f"Noise alone minus plain ({pair}): {points(noisy - bare)} of robust accuracy{test}."]
    if found is None:
        sentences.append(why_unpaired(reference, plain))
    if others := outside_noise(reference, plain):
        text = f"The two runs also differ in {', '.join(others)}, so the difference is not the noise's alone."
        sentences.append(text)
    return Claim(" ".join(sentences))


def image_claims(block: Block) -> Iterator[Claim]:
    """Warn where two models of a block were given different images, or the same ones in different pixels."""
    for first, second in combinations(block.rows, 2):
        ours, theirs = (attack_of(row).images for row in (first, second))
        if ours is not None and theirs is not None and ours != theirs:
            resized = ours[:2] == theirs[:2]
            what = "the same images, resized or cropped differently" if resized else "different images"
            yield Claim(f"{first.name} and {second.name} were attacked on {what}.", warns=True)


def row_claims(row: Row) -> Iterator[Claim]:
    """Warn where the files of one attack contradict each other."""
    attack = attack_of(row)
    summary, robust = attack.summary, robust_images(attack)
    if robust is not None and (robust.height, robust["robust"].sum()) != (summary.num_images, summary.num_robust):
        text = (
            f"{row.name}: records.parquet has {robust['robust'].sum()} robust of {robust.height} images, "
            f"summary.json {summary.num_robust} of {summary.num_images}."
        )
        yield Claim(text, warns=True)
    yield from doubt_claims(row.name, attack)
    # The attacks project in float32, which may leave a perturbation a rounding error outside of the ball.
    if summary.max_norm > summary.eps * (1 + 1e-4) + 1e-6:
        text = f"{row.name}: the largest perturbation, {summary.max_norm:.6g}, is beyond eps, {summary.eps:.6g}."
        yield Claim(text, warns=True)
    if row.own and row.run.weights_sha256 not in (None, summary.weights_sha256):
        text = f"{row.name}: the attacked weights are not the ones that are in the run's model.safetensors now."
        yield Claim(text, warns=True)


def doubt_claims(name: str, attack: Attack) -> Iterator[Claim]:
    """Say what stronger attacks left of a number, as `kapdist attack sanity` found it."""
    if attack.doubt:
        yield Claim(f"{name}: the robust accuracy is not to be believed. {attack.doubt.in_words()}.", warns=True)
    elif attack.acted and attack.acted.plan_fingerprint is None and not attack.acted.believed:
        text = (
            f"{name}: stronger attacks broke what the report's own had left, before this attack was merged; "
            "kapdist attack sanity compares them with this one."
        )
        yield Claim(text, warns=True)


def note_claims(block: Block) -> Iterator[Claim]:
    """Hand on what the attack side wrote beside its numbers, each note once with the rows that it is about."""
    notes: dict[str, list[str]] = {}
    for row in block.rows:
        for note in attack_of(row).summary.notes:
            notes.setdefault(note, []).append(row.name)
    for note, names in notes.items():
        yield Claim(f"{enumeration(names)}: {note.rstrip('.')}.", warns=True)


def absence_claims(block: Block, runs: Sequence[Run]) -> Iterator[Claim]:
    present = [row.run for row in block.rows]
    absent = [run.label for run in runs if run not in present]
    if absent:
        yield Claim(f"Not attacked in this setting: {', '.join(absent)}.")


def robust_images(attack: Attack) -> polars.DataFrame | None:
    """Return (image, robust): correct without the attack and not broken by it."""
    if attack.records is None:
        return None
    correct = polars.col("clean_prediction") == polars.col("label")
    return attack.records.select("image", robust=correct & polars.col("broken_by").is_null())


def has_kap(row: Row) -> bool:
    return row.own and config_of(row.run).kap.pool_size > 1


def has_noise(row: Row) -> bool:
    return bool(row.noises or row.input_noise_std)


def is_plain(row: Row) -> bool:
    return row.own and not has_kap(row) and not has_noise(row) and config_of(row.run).model.members == 1


def is_reference(row: Row, kap: Row) -> bool:
    """Whether a row is the model that shows what the noise does without KAP, of as many members."""
    if not row.own or has_kap(row) or config_of(row.run).model.members != config_of(kap.run).model.members:
        return False
    return (row.noises, row.input_noise_std) == (kap.noises, kap.input_noise_std)


def least_different(row: Row, others: Sequence[Row]) -> Row | None:
    return min(others, key=lambda other: len(differences(row.run, other.run)), default=None)


def attack_of(row: Row) -> Attack:
    assert row.attack is not None, "a row of a block with a setting has an attack"
    return row.attack


def noise_text(row: Row) -> str:
    parts = row.noises | ({"input noise": f"σ = {row.input_noise_std:g}"} if row.input_noise_std else {})
    return enumeration([f"{name} {strength}" for name, strength in parts.items()]) if parts else "no noise"


def lead(runs: Sequence[Run], blocks: Sequence[Block]) -> str:
    """Say in one sentence what was compared and under which attack."""
    settings = [block.setting for block in blocks if block.setting]
    names = enumeration([run.label for run in runs])
    if not settings:
        return f"{names}: {'not' if len(runs) == 1 else 'none of them'} attacked yet."
    if len(settings) > 1:
        return f"{names}, attacked in {len(settings)} settings; each has its own table, and they do not mix."
    one = settings[0]
    images = plural(one.num_images, "image") + (" each" if len(runs) > 1 else "")
    return (
        f"{names}, attacked with {one.version_text} in {one.norm} with eps = {one.eps_text} on {images}, "
        f"{one.protocol()}."
    )
