"""What an attack found: integers added up, divided once, with their intervals."""

from __future__ import annotations

import math
from typing import Any, Literal

import polars as pl

from kapdist.attack.plan import AttackPlan, Frozen

Z_95 = 1.959963984540054  # 97.5th percentile of the normal distribution
SQUARE_ALONE = 0.002


class Proportion(Frozen):
    """A share of images with its 95% Wilson interval."""

    value: float
    low: float
    high: float


class AttackSummary(Frozen):
    """One attack, on those that the ones before had left."""

    name: str
    num_attacked: int
    num_broken: int
    num_robust_after: int
    robust_accuracy_after: float
    forwards: int
    backwards: int
    seconds: float


class Summary(Frozen):
    """The result of an attack: summary.json."""

    format: Literal[1] = 1
    name: str
    run: str
    plan_fingerprint: str
    norm: str
    eps: float
    version: str
    noise: str
    num_images: int
    num_clean_correct: int
    clean_accuracy: Proportion
    num_robust: int
    robust_accuracy: Proportion
    attacks: tuple[AttackSummary, ...]
    forwards: int
    """Images passed forward, those of the clean predictions included."""
    backwards: int
    seconds: float
    """Of all shards together."""
    max_norm: float
    """Largest norm of an image that broke the model; 0 if none did."""
    weights_sha256: str
    device: str
    packages: dict[str, str | None]
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return self.model_dump(mode="json")

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per stage, the clean images first: what summary.csv holds."""
        clean = {
            "stage": "clean",
            "num_attacked": 0,
            "num_broken": 0,
            "num_robust": self.num_clean_correct,
            "accuracy": self.clean_accuracy,
            "forwards": self.num_images,
            "backwards": 0,
        }
        after = [
            {
                "stage": attack.name,
                "num_attacked": attack.num_attacked,
                "num_broken": attack.num_broken,
                "num_robust": attack.num_robust_after,
                "accuracy": wilson(attack.num_robust_after, self.num_images),
                "forwards": attack.forwards,
                "backwards": attack.backwards,
            }
            for attack in self.attacks
        ]
        return [spread(row) for row in (clean, *after)]


def spread(row: dict[str, Any]) -> dict[str, Any]:
    share: Proportion = row.pop("accuracy")
    return row | {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}


def wilson(count: int, total: int) -> Proportion:
    """Return count / total with its 95% Wilson score interval (Wilson 1927, JASA 22:209)."""
    share = count / total
    middle = (share + Z_95**2 / (2 * total)) / (1 + Z_95**2 / total)
    half = math.sqrt(share * (1 - share) / total + (Z_95 / (2 * total)) ** 2) * Z_95 / (1 + Z_95**2 / total)
    # At the ends the bound is 0 or 1 exactly; rounding must not put the share outside of its interval.
    low = 0.0 if count == 0 else middle - half
    high = 1.0 if count == total else middle + half
    return Proportion(value=share, low=low, high=high)


def summarise(records: pl.DataFrame, plan: AttackPlan) -> Summary:
    """Add up the rows of a complete attack."""
    num_images = len(records)
    num_correct = records.filter(pl.col("label") == pl.col("clean_prediction")).height
    chunks = records.unique("chunk", maintain_order=True)
    attacks, robust = [], num_correct
    for name in plan.attacks:
        robust -= int(records[f"{name}_broke"].sum())
        attacks.append(summarise_attack(name, records, chunks, robust))
    return Summary(
        name=plan.name,
        run=plan.run,
        plan_fingerprint=plan.fingerprint,
        norm=plan.norm,
        eps=plan.eps,
        version=plan.version,
        noise=plan.noise,
        num_images=num_images,
        num_clean_correct=num_correct,
        clean_accuracy=wilson(num_correct, num_images),
        num_robust=robust,
        robust_accuracy=wilson(robust, num_images),
        attacks=tuple(attacks),
        forwards=num_images + sum(attack.forwards for attack in attacks),
        backwards=sum(attack.backwards for attack in attacks),
        seconds=float(chunks["chunk_seconds"].sum()),
        max_norm=max(largest_norm(name, records) for name in plan.attacks),
        weights_sha256=plan.model.weights_sha256,
        device=plan.device,
        packages=plan.packages,
        notes=(*plan.notes, *notes_on_square(attacks, num_images)),
    )


def summarise_attack(name: str, records: pl.DataFrame, chunks: pl.DataFrame, robust: int) -> AttackSummary:
    broke = records[f"{name}_broke"]
    return AttackSummary(
        name=name,
        num_attacked=len(broke) - broke.null_count(),
        num_broken=int(broke.sum()),
        num_robust_after=robust,
        robust_accuracy_after=robust / len(records),
        forwards=int(chunks[f"{name}_chunk_forwards"].sum()),
        backwards=int(chunks[f"{name}_chunk_backwards"].sum()),
        seconds=float(chunks[f"{name}_chunk_seconds"].sum()),
    )


def largest_norm(name: str, records: pl.DataFrame) -> float:
    largest = records.filter(pl.col(f"{name}_broke"))[f"{name}_norm"].max()
    return 0.0 if largest is None else float(largest)  # type: ignore[arg-type]


def notes_on_square(attacks: list[AttackSummary], num_images: int) -> list[str]:
    """The library's own alarm: where Square breaks what gradients could not, the gradients are masked."""
    share = sum(attack.num_broken for attack in attacks[1:] if attack.name == "square") / num_images
    if share <= SQUARE_ALONE:
        return []
    return [f"square, without gradients, broke {share:.1%} that gradients had left: they may be masked"]
