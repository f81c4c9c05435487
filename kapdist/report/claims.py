"""What may and may not be concluded from a block of the comparison, computed from its numbers.

In a pilot nearly all of the robustness came from the noise. So KAP is only ever compared with a model that has
the same noise and K = 1, and where that model is missing the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from kapdist.report.paired import (
    LEVEL,
    attack_of,
    clean_sentence,
    image_by_image,
    is_one_model,
    paired,
    paired_text,
    side_by_side,
    verdicts,
    why_unpaired,
)
from kapdist.report.reading import Attack, Images, Run
from kapdist.report.table import Block, Row
from kapdist.report.trainings import config_of, differences, outside_noise
from kapdist.report.words import accuracy_text, enumeration, p_text, plural, points
from kapdist.statistics.holm import holm
from kapdist.statistics.intervals import wilson
from kapdist.statistics.paired import PairedDifference

NO_NOISE = "None of these models has noise of its own, so there was none to switch off in this attack."
ONE_TRAINING = (
    "The intervals are 95% intervals over images, and the tests are over images too. They do not cover how much a "
    "result changes when a model is trained again with another seed."
)


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
    none = all(row.own and not row.noises for row in block.rows)
    if none and block.setting.noise != "off":
        yield Claim(f"None of these models has noise of its own: mode {block.setting.noise} had none to switch on.")
    elif block.setting.noise != "off":
        yield Claim(f"{noise} was on during this attack, mode {block.setting.noise}.")
    elif none:
        yield Claim(NO_NOISE)
    else:
        yield Claim(
            f"{noise} was switched off during this attack, so these numbers say nothing about the noise itself at "
            "test time."
        )


def gap_claims(block: Block) -> Iterator[Claim]:
    pairs = gaps(block)
    corrected_ones = corrected_p(pairs)
    num_tests = len(pairs) - corrected_ones.count(None)
    for pair, corrected in zip(pairs, corrected_ones, strict=True):
        yield Claim(gap_text(pair, corrected, num_tests))
        if (
            pair.paired
            and corrected is not None
            and corrected < LEVEL
            and not doubted_names(pair.kap, pair.reference)
        ):
            yield from trade_claims(pair.kap, pair.reference, pair.paired)
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
    counts = image_by_image(first, second, found)
    if is_one_model(first, second):
        yield Claim(f"{counts}: {two_attacks_text(first, second)}")
        return
    if doubted := doubted_names(first, second):
        yield Claim(f"{counts}: nothing is decided, as the robust accuracy of {doubted} is not to be believed.")
        return
    decided = "more robust" if found.p < LEVEL else "not shown to be more robust"
    yield Claim(" ".join(filter(None, [f"{counts}: {first.name} is {decided}.", clean_sentence(first, second)])))
    if found.p < LEVEL:
        yield from trade_claims(first, second, found)


def two_attacks_text(first: Row, second: Row) -> str:
    both = side_by_side(first, second)
    assert both is not None, "asked where the two were compared"
    left = wilson(int((both["robust"] & both["robust_second"]).sum()), both.height)
    return f"two attacks on one model, and {accuracy_text(left)} of the images withstood both."


def trade_claims(first: Row, second: Row, robust: PairedDifference) -> Iterator[Claim]:
    """Warn where a model that is shown to be more robust is shown to be less accurate: that is not better."""
    clean = paired(first, second, "right")
    if clean is None or clean.p >= LEVEL or clean.value * robust.value > 0:
        return
    more, less = (first, second) if robust.value > 0 else (second, first)
    text = (
        f"{more.name} is more robust and less accurate than {less.name}. That is not better: it may be the same "
        "trade of clean for robust accuracy at another point."
    )
    yield Claim(text, warns=True)


def gaps(block: Block) -> tuple[Gap, ...]:
    """Pair every model with KAP with the most similar one that has the same noise and K = 1."""
    found = []
    for row in block.rows:
        if has_kap(row):
            others = [other for other in block.rows if is_reference(other, row)]
            if reference := least_different(row, others):
                found.append(Gap(row, reference))
    return tuple(found)


def corrected_p(pairs: Sequence[Gap]) -> list[float | None]:
    """Return the p-value of each pair, corrected for all that are tested in the block; None where nothing is."""
    found = [None if (test := pair.paired) is None else test.p for pair in pairs]
    corrected = iter(holm([p for p in found if p is not None]))
    return [None if p is None else next(corrected) for p in found]


def gap_text(gap: Gap, corrected: float | None, num_tests: int) -> str:
    kap, reference = (attack_of(row).summary.robust_accuracy for row in (gap.kap, gap.reference))
    other = "noise alone" if has_noise(gap.reference) else "plain"
    sentences = [
        f"KAP minus {other} ({gap.kap.name} minus {gap.reference.name}, {noise_text(gap.reference)}): "
        f"{points(gap.robust)} of robust accuracy ({accuracy_text(kap)} against {accuracy_text(reference)}), "
        f"{points(gap.clean)} of clean accuracy.",
        verdict(gap, corrected, num_tests),
        clean_sentence(gap.kap, gap.reference),
        other_differences(gap),
    ]
    return " ".join(filter(None, sentences))


def verdict(gap: Gap, corrected: float | None, num_tests: int) -> str:
    """Decide by the images on which only one of the two models withstood; two intervals decide nothing.

    Args:
        corrected: the p-value that decides, by Holm's correction over the pairs of the block.
    """
    found = gap.paired
    if found is None or corrected is None:
        return why_unpaired(gap.kap, gap.reference)
    several = f", Holm's over {num_tests} pairs {p_text(corrected, LEVEL)}" if num_tests > 1 else ""
    counts = image_by_image(gap.kap, gap.reference, found, several)
    if doubted := doubted_names(gap.kap, gap.reference):
        return f"{counts}: nothing is decided, as the robust accuracy of {doubted} is not to be believed."
    if corrected >= LEVEL:
        return f"{counts}: it is not decided whether KAP changes robust accuracy here."
    side = "above" if found.value > 0 else "below"
    return f"{counts}: the model with KAP is {side} the one without it."


def other_differences(gap: Gap) -> str:
    if not gap.differences:
        return ""
    return f"The two runs also differ in {', '.join(gap.differences)}, so the gap is not KAP's alone."


def noise_alone_claim(reference: Row, plain: Row) -> Claim:
    noisy, bare = (attack_of(row).summary.robust_accuracy.value for row in (reference, plain))
    pair, found = f"{reference.name} minus {plain.name}", paired(reference, plain)
    test = f" (image by image {paired_text(found)})" if found else ""
    sentences = [f"Noise alone minus plain ({pair}): {points(noisy - bare)} of robust accuracy{test}."]
    sentences.append(why_unpaired(reference, plain) if found is None else clean_sentence(reference, plain))
    if doubted := doubted_names(reference, plain):
        sentences.append(f"The robust accuracy of {doubted} is not to be believed.")
    if others := outside_noise(reference, plain):
        text = f"The two runs also differ in {', '.join(others)}, so the difference is not the noise's alone."
        sentences.append(text)
    return Claim(" ".join(filter(None, sentences)))


def image_claims(block: Block) -> Iterator[Claim]:
    """Warn where models of a block were given different images, or the same ones in different pixels.

    Those that had the same are named together: of many models there would be a warning for each two.
    """
    groups: dict[Images, list[str]] = {}
    for row in block.rows:
        if (images := attack_of(row).images) is not None:
            groups.setdefault(images, []).append(row.name)
    for (ours, names), (theirs, others) in combinations(groups.items(), 2):
        resized = ours[:2] == theirs[:2]
        if len(names) == len(others) == 1:
            what = "the same images, resized or cropped differently" if resized else "different images"
            yield Claim(f"{names[0]} and {others[0]} were attacked on {what}.", warns=True)
            continue
        was = "was" if len(names) == 1 else "were"
        than = "the same images as {}, resized or cropped differently" if resized else "other images than {}"
        text = f"{enumeration(names)} {was} attacked on {than.format(enumeration(others))}."
        yield Claim(text, warns=True)


def row_claims(row: Row) -> Iterator[Claim]:
    """Warn where the files of one attack contradict each other."""
    attack = attack_of(row)
    summary, robust = attack.summary, verdicts(attack)
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


def doubted_names(*rows: Row) -> str:
    """Name the rows whose robust accuracy is not to be believed; "" where there is none."""
    names = [row.name for row in rows if attack_of(row).doubt]
    return enumeration(names) if names else ""


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
    """Return the row whose training differs least; of a run's several attacks that on the same images, then that
    of the same name."""

    def unlike(other: Row) -> tuple[int, bool, bool]:
        ours, theirs = attack_of(row), attack_of(other)
        return len(differences(row.run, other.run)), ours.images != theirs.images, ours.name != theirs.name

    return min(others, key=unlike, default=None)


def noise_text(row: Row) -> str:
    parts = row.noises | ({"input noise": f"σ = {row.input_noise_std:g}"} if row.input_noise_std else {})
    return enumeration([f"{name} {strength}" for name, strength in parts.items()]) if parts else "no noise"


def lead(runs: Sequence[Run], blocks: Sequence[Block]) -> str:
    """Say in one sentence what was compared and under which attack."""
    settings = [block.setting for block in blocks if block.setting]
    attacked = list(dict.fromkeys(row.run.label for block in blocks if block.setting for row in block.rows))
    idle = [run.label for run in runs if run.label not in attacked]
    if not settings:
        return f"{enumeration(idle)}: {'not' if len(runs) == 1 else 'none of them'} attacked yet."
    names, others = enumeration(attacked), f" Not attacked yet: {', '.join(idle)}." if idle else ""
    if len(settings) > 1:
        return (
            f"{names}, attacked in {len(settings)} settings; each has its own table, and they do not mix.{others}"
        )
    one = settings[0]
    images = plural(one.num_images, "image") + (" each" if len(attacked) > 1 else "")
    return (
        f"{names}, attacked with {one.version_text} in {one.norm} with eps = {one.eps_text} on {images}, "
        f"{one.protocol()}.{others}"
    )
