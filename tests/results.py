"""What two runs must have in common to be the same run."""

from __future__ import annotations

import json

from kapdist.records.metrics import TIMED
from kapdist.run.paths import RunDir


def numbers(run: RunDir) -> list[dict]:
    """The metrics that a run computes, without those that time decides."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
