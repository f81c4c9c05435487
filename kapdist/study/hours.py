"""What a study has taken so far; read without what tables and pictures need, so that a look at it is quick."""

from __future__ import annotations

from kapdist.records.metrics import read_metrics
from kapdist.records.sealed import read_json
from kapdist.study.design import Design, Setting
from kapdist.study.tasks import run_dir


def hours(design: Design, setting: Setting) -> tuple[float, float]:
    """Return (hours of training, hours of attacks) that were used for a setting so far."""
    places = [run_dir(design, run) for run in design.of_setting(setting)]
    ends = [read_metrics(place.metrics).end for place in places]
    trained = sum(end.get("seconds", 0.0) for end in ends if end)
    summaries = [place.attack(name).summary for place in places for name in design.attacks]
    attacked = sum(read_json(path).get("seconds", 0.0) for path in summaries if path.exists())
    return trained / 3600, attacked / 3600
