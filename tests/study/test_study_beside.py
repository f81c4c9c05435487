"""What stands beside the accuracies of a study's settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kapdist.certify.merge import stated_radii
from kapdist.study import beside
from kapdist.study.beside import certified_words


@pytest.mark.parametrize("order", [1, -1])
def test_certified_accuracy_is_read_at_one_radius_whatever_each_seed_states(
    tmp_path: Path, monkeypatch, order: int
) -> None:
    """Radii are stated in steps that depend on the largest: 1 up to 0.3 and 0 beyond is that at every step."""
    summaries = {
        tmp_path / str(seed): SimpleNamespace(smoothed=[certified_to_three_tenths(largest)])
        for seed, largest in enumerate((0.59, 0.62, 0.75)[::order])
    }
    monkeypatch.setattr(beside, "read_certificate_summary", summaries.__getitem__)
    said = certified_words(list(summaries))
    assert said.startswith("σ 0.25: 100.0% at 0, ")
    for pair in said.partition(": ")[2].split(", "):
        share, radius = pair.split("% at ")
        assert float(share) == (100 if float(radius) <= 0.3 else 0)


def certified_to_three_tenths(largest: float) -> Any:
    radii = stated_radii(largest)
    at = [SimpleNamespace(radius=radius, accuracy=SimpleNamespace(value=float(radius <= 0.3))) for radius in radii]
    return SimpleNamespace(sigma=0.25, certified=at)
