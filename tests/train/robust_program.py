"""One rank of test_train_robust: robust validation of one model, whose numbers no number of ranks may change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # what pytest does for the tests themselves

from robust_images import found_by

from kapdist.config import EngineConfig
from kapdist.engine import join


def main() -> None:
    with join(EngineConfig(device="cpu", timeout_minutes=1, threads=1)) as ranks:
        results = {noise: found_by(ranks, noise).describe() for noise in ("off", "fresh")}
        if ranks.first:
            print("found " + json.dumps(results))


main()
