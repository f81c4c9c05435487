"""TensorBoard's files of a run that went on elsewhere, read back as TensorBoard reads them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kapdist.train.events import Events, Scalars


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_a_run_goes_on_where_the_clock_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """An attempt goes back behind the one before it, on a node whose clock is behind or ahead."""
    here = time.time()
    for attempt, (clock, step, last) in enumerate([(here, 0, 10), (here + ahead, 4, 8), (here, 8, 12)]):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        events = Events(tmp_path, step)
        for number in range(step + 1, last + 1):
            events.append(Scalars(number, {"loss": float(attempt)}))
        events.close()
    monkeypatch.undo()
    told = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in told] == [
        *((step, 0.0) for step in range(1, 5)),
        *((step, 1.0) for step in range(5, 9)),
        *((step, 2.0) for step in range(9, 13)),
    ]
