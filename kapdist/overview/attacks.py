"""What a run's attacks found, each under its protocol, and whether it is to be believed: from summaries alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapdist.config.attack import attack_of_stage
from kapdist.errors import InputError, first_line
from kapdist.records.attacked import planned_anew
from kapdist.records.sanity import Acted, believed_of
from kapdist.records.sealed import read_json
from kapdist.run.paths import AttackDir, RunDir

OF_ANOTHER_KIND = (TypeError, ValueError, AttributeError, OverflowError)  # what a value of JSON may lead to


@dataclass(frozen=True)
class Result:
    """A merged attack, a sanity report, or both."""

    name: str
    protocol: str = ""
    """Norm, size, list of attacks, noise."""
    num_images: int | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    """None: there is a report and no attack of its name."""
    interval: tuple[float, float] | None = None
    sanity: str = ""
    """The report's verdict; "" where there is none."""
    believed: bool | None = None
    """Whether stronger attacks left its number standing; None where none was tried on it."""
    planned_anew: bool = False
    """Whether the numbers are of an earlier plan than the one beside them."""
    seconds: float = 0.0
    """Of one process, the report's included."""


def results_of(run: RunDir) -> tuple[Result, ...]:
    """Return what is merged or examined, in the order of the names.

    Raises:
        InputError: a summary or a report is damaged.
    """
    found = [result_of(AttackDir(folder)) for folder in sorted(run.attacks.glob("*")) if folder.is_dir()]
    return tuple(result for result in found if result is not None)


def result_of(place: AttackDir) -> Result | None:
    summary, report = (read_json(path) if path.exists() else None for path in (place.summary, place.sanity))
    if summary is None and report is None:
        return None
    said: dict[str, Any] = {"seconds": 0.0}
    if summary is not None:
        said |= needed(place.summary, lambda: of_summary(summary, place))
    if report is not None:
        said |= needed(place.sanity, lambda: of_report(report, summary, said["seconds"]))
    return Result(place.root.name, **said)


def of_summary(summary: dict[str, Any], place: AttackDir) -> dict[str, Any]:
    robust, noise = summary["robust_accuracy"], summary["noise"]
    words = [
        size(summary["norm"], summary["eps"]),
        listed(summary),
        *([f"noise {noise}"] if noise != "off" else []),
    ]
    return {
        "protocol": ", ".join(words),
        "num_images": int(summary["num_images"]),
        "clean_accuracy": float(summary["clean_accuracy"]["value"]),
        "robust_accuracy": float(robust["value"]),
        "interval": (float(robust["low"]), float(robust["high"])),
        "planned_anew": planned_anew(place, str(summary["plan_fingerprint"])),
        "seconds": float(summary.get("seconds") or 0.0),
    }


def listed(summary: dict[str, Any]) -> str:
    """Say the list of attacks: by its name, or of a custom one its attacks, of several eps each once."""
    if summary["version"] != "custom":
        return str(summary["version"])
    stages = summary["attacks"]
    return "+".join(dict.fromkeys(attack_of_stage(stage["name"], stage["eps"]) for stage in stages)) or "custom"


def of_report(report: dict[str, Any], summary: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    acted = report.get("acted")
    attacked = summary["plan_fingerprint"] if summary else None
    believed = believed_of(None if acted is None else Acted.model_validate(acted), attacked)
    seconds += float(report.get("seconds") or 0.0)
    said = {"sanity": str(report["verdict"]), "believed": believed, "seconds": seconds}
    return said if summary else said | {"protocol": size(report["norm"], report["eps"])}


def needed(path: Path, read: Any) -> dict[str, Any]:
    """Return what is read out of a file; a key that it lacks is damage, and so is a value of another kind."""
    try:
        found: dict[str, Any] = read()
    except KeyError as error:
        raise InputError(path, "what an attack or a report says", f"no {error}") from None
    except OF_ANOTHER_KIND as error:
        raise InputError(path, "what an attack or a report says", first_line(error)) from None
    return found


def size(norm: str, eps: float) -> str:
    """Say a perturbation's size as papers do: Linf in steps of an 8-bit image."""
    return f"{norm} {eps * 255:.4g}/255" if norm == "Linf" else f"{norm} {eps:g}"
