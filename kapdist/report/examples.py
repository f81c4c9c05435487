"""A few broken images of an attack: clean, adversarial, and what was added, made visible."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kapdist.errors import InputError
from kapdist.records.sealed import read_array
from kapdist.report.reading import Attack, optional_json, read_rows
from kapdist.report.words import attack_text

Pixels = NDArray[np.float32]
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Candidate:
    """A broken image whose pixels were kept: its row in the records and its place in the chunk's file."""

    chunk: int
    position: int
    row: dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A broken image; pixels are (height, width, 3) in [0, 1], `clean` is None where only the result was kept."""

    image: int
    label: str
    clean_prediction: str
    adversarial_prediction: str
    broken_by: str
    clean: Pixels | None
    adversarial: Pixels

    @cached_property
    def gain(self) -> float:
        """Factor that makes the largest change of a pixel half of the range, a whole number where it can be."""
        assert self.clean is not None
        largest = float(np.abs(self.adversarial - self.clean).max())
        factor = 0.5 / max(largest, 1e-6)
        return float(np.floor(factor)) if factor >= 2 else factor

    @property
    def perturbation(self) -> Pixels:
        """What was added, amplified by `gain` around a middle grey."""
        assert self.clean is not None
        return np.clip(0.5 + self.gain * (self.adversarial - self.clean), 0, 1).astype(np.float32)


def examples(attacks: Sequence[Attack]) -> list[list[Example]]:
    """Return a few broken images per attack, the same ones for all attacks as far as they broke the same.

    Raises:
        InputError: a file of kept images that does not fit its chunk's rows.
    """
    found = [candidates(attack) for attack in attacks]
    times = Counter(candidate.row["image"] for broken in found for candidate in broken)
    chosen = []
    for attack, broken in zip(attacks, found, strict=True):
        broken.sort(key=lambda candidate: (-times[candidate.row["image"]], candidate.row["image"]))
        names = class_names(attack) if broken else ()
        chosen.append([example(attack, candidate, names) for candidate in broken[:NUM_EXAMPLES]])
    return chosen


def candidates(attack: Attack) -> list[Candidate]:
    """List the images of the kept chunks that were right before the attack and wrong after it."""
    found: list[Candidate] = []
    if attack.plan.get("keep_adversarial") is False:
        return found  # what is there a removed plan has left
    for path in sorted(attack.dir.adversarial.glob("chunk-*.npy")):
        chunk = int(path.stem.removeprefix("chunk-"))
        if attack.dir.chunk(chunk).exists():
            rows = read_rows(attack.dir.chunk(chunk)).to_dicts()
            found += [
                Candidate(chunk, position, row)
                for position, row in enumerate(rows)
                if row["broken_by"] is not None and row["clean_prediction"] == row["label"]
            ]
    return found


def example(attack: Attack, candidate: Candidate, names: Sequence[str]) -> Example:
    row = candidate.row
    adversarial = attack.dir.adversarial_images(candidate.chunk)
    clean = attack.dir.clean_images(candidate.chunk)
    return Example(
        image=row["image"],
        label=named(row["label"], names),
        clean_prediction=named(row["clean_prediction"], names),
        adversarial_prediction=named(row.get(f"{row['broken_by']}_prediction"), names),
        broken_by=attack_text(row["broken_by"]),
        clean=pixels(clean, candidate.position) if clean.exists() else None,
        adversarial=pixels(adversarial, candidate.position),
    )


def pixels(path: Path, position: int) -> Pixels:
    """Read one image of a (n, 3, height, width) file, all of which has to be what was written."""
    images = read_array(path, "kapdist attack shard does its chunk again")
    if images.ndim != 4 or images.shape[1] != 3 or position >= len(images):
        raise InputError(path, f"more than {position} images (n, 3, height, width)", f"shape {images.shape}")
    return np.array(images[position].transpose(1, 2, 0), dtype=np.float32)


def class_names(attack: Attack) -> Sequence[str]:
    """Return the names that labels were mapped by, or else the attacked beton's; none if its manifest is gone."""
    data = attack.plan.get("data")
    if not isinstance(data, dict):
        return ()
    if isinstance(mapped := data.get("classes"), list):
        return [str(name) for name in mapped]
    beton = data.get("path")
    if not isinstance(beton, str):
        return ()
    names = (optional_json(Path(f"{beton}.json")) or {}).get("class_names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def named(label: int | None, names: Sequence[str]) -> str:
    if label is None:
        return "another class"
    return names[label] if 0 <= label < len(names) else f"class {label}"


def encode_png(image: Pixels) -> bytes:
    """Return (height, width, 3) in [0, 1] as PNG."""
    data = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(data, format="PNG")
    return data.getvalue()
